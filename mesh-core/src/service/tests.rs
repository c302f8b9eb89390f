//! The compiler as a whole: against the oracle, from scratch, step by step.

mod capacity;
mod kernel;
mod objects;
mod oracle;
mod semantics;
mod worlds;

use std::collections::BTreeSet;

use proptest::prelude::*;

use self::kernel::Kernel;
use self::oracle::World;
use self::worlds::{Change, Step, change, everything_said, step};
use super::*;
use crate::policy::model::ObjectName;

fn object(name: &str) -> ObjectName {
    ObjectName { namespace: "x".to_owned(), name: name.to_owned() }
}

/// Tells a compiler all of a world.
fn tell(compiler: &mut Compiler, world: &World) {
    compiler.set_node(world.own.clone());
    for (name, addresses) in &world.homes {
        compiler.set_addresses(name.clone(), addresses.clone());
    }
    for (name, facts) in &world.services {
        compiler.set_service(name.clone(), Some(facts.clone()));
    }
    for (name, facts) in &world.slices {
        compiler.set_slice(name.clone(), Some(facts.clone()));
    }
    compiler.set_host_ports(world.host_ports.clone());
}

/// Changes a world and tells the compiler.
fn change_both(change: Change, world: &mut World, compiler: &mut Compiler) {
    match change {
        Change::Node(own) => {
            world.own = own.clone();
            compiler.set_node(own);
        }
        Change::Addresses(node, addresses) => {
            compiler.set_addresses(node.clone(), addresses.clone());
            world.homes.insert(node, addresses);
        }
        Change::Service(name, facts) => {
            compiler.set_service(name.clone(), facts.as_deref().cloned());
            match facts {
                Some(facts) => world.services.insert(name, *facts),
                None => world.services.remove(&name),
            };
        }
        Change::Slice(name, facts) => {
            compiler.set_slice(name.clone(), facts.clone());
            match facts {
                Some(facts) => world.slices.insert(name, facts),
                None => world.slices.remove(&name),
            };
        }
        Change::HostPorts(all) => {
            world.host_ports = all.clone();
            compiler.set_host_ports(all);
        }
    }
}

/// Whatever anybody may say is answered as the oracle does.
fn agrees(world: &World, kernel: &Kernel) -> Result<(), TestCaseError> {
    for (addr, port, protocol) in everything_said() {
        let expected = world.answer(addr, port, protocol);
        let got = kernel.answer(world, addr, port, protocol);
        prop_assert_eq!(got, expected, "{} {} {:?}\n{:#?}", addr, port, protocol, world);
    }
    Ok(())
}

fn small() -> Limits {
    Limits { frontends: 4096, places: 1 << 16, backends: 4096 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_maps_answer_as_the_oracle_after_every_commit(
        mut world in worlds::nodes(),
        steps in proptest::collection::vec(step(), 1..50),
    ) {
        let mut compiler = Compiler::new(small());
        let mut kernel = Kernel::default();
        compiler.set_node(world.own.clone());
        for step in steps.into_iter().chain([Step::Commit]) {
            match step {
                Step::Commit => {
                    let delta = compiler.commit();
                    kernel.apply(&delta)?;
                    prop_assert!(kernel.holds(compiler.state()));
                    agrees(&world, &kernel)?;
                    let again = compiler.commit();
                    prop_assert!(again.is_empty(), "nothing changed: {:?}", again);
                }
                Step::Quiesce => compiler.quiesced(kernel.quiesce()),
                Step::Change(change) => change_both(change, &mut world, &mut compiler),
            }
        }
        let mut scratch = Compiler::new(small());
        tell(&mut scratch, &world);
        scratch.commit();
        prop_assert_eq!(kernel::normal(compiler.state()), kernel::normal(scratch.state()));
        prop_assert_eq!(compiler.problems(), scratch.problems());
    }

    #[test]
    fn a_new_agent_takes_over_what_the_old_one_left(
        mut world in worlds::nodes(),
        before in proptest::collection::vec(change(), 1..30),
        while_away in proptest::collection::vec(change(), 0..4),
    ) {
        let mut old = Compiler::new(small());
        let mut kernel = Kernel::default();
        old.set_node(world.own.clone());
        for change in before {
            change_both(change, &mut world, &mut old);
        }
        kernel.apply(&old.commit())?;
        let installed = kernel.restart();
        let highest = old.state().backends.keys().map(|id| id.0).max().unwrap_or(0);

        let mut same = Compiler::new(small());
        same.adopt(installed.clone(), highest).unwrap();
        tell(&mut same, &world);
        let unchanged = same.commit();
        // Who was refused an address has a table that no frontend in the maps leads to, or a number that is another's.
        let refused = same.problems().iter().any(|problem| matches!(problem, ServiceProblem::Claimed { .. }));
        let hidden = old.state().tables.len() - installed.tables.len();
        prop_assert!(unchanged.is_empty() || refused || hidden > 0, "{:?}\n{:?}", unchanged, installed);

        let mut new = Compiler::new(small());
        new.adopt(installed.clone(), highest).unwrap();
        let mut scratch = Compiler::new(small());
        for change in while_away {
            change_both(change, &mut world, &mut scratch);
        }
        tell(&mut new, &world);
        kernel.apply(&new.commit())?;
        agrees(&world, &kernel)?;
        let kept = installed.frontends.iter().filter(|(key, _)| kernel.read().frontends.contains_key(key));
        let numbers: BTreeSet<u32> = kept.map(|(_, front)| front.service.0).collect();
        prop_assert!(numbers.iter().all(|n| *n <= highest.max(1000)));
    }
}
