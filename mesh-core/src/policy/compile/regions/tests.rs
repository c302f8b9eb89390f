use std::sync::Arc;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::policy::classes::{Atom, Atoms};

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

const NETS: [&str; 10] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.0/30",
    "10.0.0.2/31",
    "10.0.0.3/32",
    "192.0.2.0/24",
    "::/0",
    "fd00::/64",
    "fd00::/126",
];

proptest! {
    #[test]
    fn an_address_lies_in_the_blocks_that_contain_it_whatever_came_and_went(
        steps in vec((select(&NETS[..]), vec(select(&NETS[..]), 0..3), any::<bool>()), 1..30),
    ) {
        let guarded = [net("10.0.0.0/24")];
        let (mut regions, mut atoms) = (Regions::new(&guarded), Atoms::default());
        let mut blocks: Vec<Arc<Atom>> = Vec::new();
        for (cidr, except, goes) in steps {
            if goes && !blocks.is_empty() {
                let atom = blocks.remove(blocks.len() / 2);
                let Atom::Block(block) = &*atom else { unreachable!() };
                if let Some(id) = atoms.release(&atom) {
                    regions.remove(id, block);
                }
            } else {
                let except: Vec<_> = except.into_iter().map(net).collect();
                let block = Block::new(net(cidr), &except);
                let atom = Arc::new(Atom::Block(block.clone()));
                if let Some(id) = atoms.hold(&atom) {
                    regions.insert(id, &block);
                }
                blocks.push(atom);
            }
        }
        for address in ["10.0.0.0", "10.0.0.2", "10.0.0.3", "10.0.0.9", "10.1.0.0", "8.8.8.8", "fd00::1", "fd00::9", "1::"] {
            let address: IpAddr = address.parse().unwrap();
            let holds = |atom: &&Arc<Atom>| match &***atom {
                Atom::Block(block) => {
                    block.cidr.contains(&address) && !block.except.iter().any(|e| e.contains(&address))
                }
                Atom::Pods(_) | Atom::Nodes(_) => false,
            };
            let wanted: BTreeSet<_> = blocks.iter().filter(holds).filter_map(|atom| atoms.id(atom)).collect();
            let found = regions.atoms(address);
            prop_assert!(found.is_sorted());
            prop_assert_eq!(found.iter().copied().collect::<BTreeSet<_>>(), wanted);
        }
        blocks.iter().for_each(|atom| {
            let Atom::Block(block) = &**atom else { unreachable!() };
            if let Some(id) = atoms.release(atom) {
                regions.remove(id, block);
            }
        });
        prop_assert_eq!(regions.regions.len(), 2, "nothing stays behind");
    }
}

proptest! {
    #[test]
    fn what_is_guarded_last_is_guarded_as_if_it_had_been_from_the_start(
        blocks in vec(select(&NETS[..]), 0..5),
        guarded in vec(vec(select(&NETS[..]), 0..4), 1..5),
    ) {
        let nets = |texts: &[&str]| texts.iter().map(|text| net(text)).collect::<Vec<_>>();
        let mut atoms = Atoms::default();
        let hold = |regions: &mut Regions, atoms: &mut Atoms, cidr: &str| {
            let block = Block::new(net(cidr), &[]);
            let atom = Arc::new(Atom::Block(block.clone()));
            let id = atoms.hold(&atom).or_else(|| atoms.id(&atom)).unwrap();
            regions.insert(id, &block);
        };
        let mut changed = Regions::new(&[]);
        let mut said = BTreeMap::new();
        let mut look = |regions: &mut Regions| {
            for net in regions.take_dirty() {
                said.insert(net, format!("{:?}", regions.ground(&net)));
            }
        };
        look(&mut changed);
        let unique: BTreeSet<&str> = blocks.into_iter().collect();
        for (place, cidr) in unique.iter().enumerate() {
            hold(&mut changed, &mut atoms, cidr);
            changed.set_guarded(&nets(&guarded[place % guarded.len()]));
            look(&mut changed);
        }
        let last = nets(guarded.last().unwrap());
        changed.set_guarded(&last);
        look(&mut changed);
        let mut fresh = Regions::new(&last);
        for cidr in &unique {
            let block = Block::new(net(cidr), &[]);
            let id = atoms.id(&Arc::new(Atom::Block(block.clone()))).unwrap();
            fresh.insert(id, &block);
        }
        // Whoever was told of each change has what a beginner has, but for what is not there any more.
        said.retain(|_, ground| ground != "Unsaid");
        let wanted: BTreeMap<_, _> = fresh.take_dirty().into_iter()
            .map(|net| (net, format!("{:?}", fresh.ground(&net))))
            .filter(|(_, ground)| ground != "Unsaid")
            .collect();
        prop_assert_eq!(said, wanted);
        prop_assert_eq!(changed.regions.len(), fresh.regions.len(), "nothing stays behind");
    }
}
