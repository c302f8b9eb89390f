//! `abi.rs` and `abi.h` say the same: the C compiler that builds the programs checks sizes, offsets and numbers.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::process::Command;

use datapath::abi::{self, counters};

const HEADER: &str = include_str!("../src/bpf/abi.h");

/// A field as Rust has it: name in C, offset, size.
type Field = (&'static str, usize, usize);

struct Layout {
    name: &'static str,
    size: usize,
    fields: Vec<Field>,
    /// Every byte belongs to a field, so that its value can be given to the kernel.
    whole: bool,
}

fn size_of_field<T, F>(_: impl Fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! layout {
    ($type:ty, $name:literal, $whole:literal, $($field:ident)*) => {
        Layout {
            name: $name,
            size: size_of::<$type>(),
            fields: vec![$((
                stringify!($field),
                std::mem::offset_of!($type, $field),
                size_of_field(|value: &$type| &value.$field),
            )),*],
            whole: $whole,
        }
    };
}

fn layouts() -> Vec<Layout> {
    vec![
        layout!(abi::Addr, "hw_addr", true, w),
        layout!(abi::Address, "hw_address", true, class flags pad),
        layout!(abi::Prefix, "hw_prefix", true, bits addr),
        layout!(abi::Block, "hw_block", true, class),
        layout!(abi::RowKey, "hw_row_key", true, table class direction),
        {
            let mut ports = layout!(abi::PortKey, "hw_port_key", true, bits protocol pad port);
            ports.fields.push(("fn", std::mem::offset_of!(abi::PortKey, r#fn), 4));
            ports
        },
        layout!(abi::Side, "hw_side", true, table fallback flags),
        layout!(abi::Endpoint, "hw_endpoint", true, ip4 ip6 pod_mac host_mac flags side),
        layout!(abi::Local, "hw_local", true, ifindex flags),
        layout!(abi::State, "hw_state", true, epoch flags hold pad),
        layout!(abi::Tuple, "hw_tuple", true, src dst sport dport protocol scope pad),
        layout!(
            abi::Flow, "hw_flow", true,
            until judged state flags nat_port service nat client client_port stranger revived pad
        ),
        layout!(abi::FragmentKey, "hw_fragment_key", true, src dst id protocol),
        layout!(abi::Fragment, "hw_fragment", true, sport dport protocol until),
        layout!(abi::FrontendKey, "hw_frontend_key", true, addr port protocol pad),
        layout!(abi::Frontend, "hw_frontend", true, base count service affinity flags pad),
        layout!(abi::Backend, "hw_backend", true, addr port flags pad),
        layout!(abi::AffinityKey, "hw_affinity_key", true, client service pad),
        layout!(abi::Affinity, "hw_affinity", true, until backend pad),
        layout!(
            abi::Event, "hw_event", false,
            at src dst service sport dport service_port protocol kind reason direction tcp_flags flags
            ifindex rule classes length epoch
        ),
    ]
}

macro_rules! numbers {
    ($($name:ident)*) => { vec![$((stringify!($name), u64::from(abi::$name))),*] };
}

fn numbers() -> Vec<(&'static str, u64)> {
    let mut all = numbers!(
        HW_ABI HW_FN_DENY HW_FN_ALLOW HW_FN_FIRST HW_CLASS_UNKNOWN HW_CLASS_WORLD HW_CLASS_FIRST HW_ADDRESS_GONE
        HW_ADDRESS_NODE HW_INGRESS HW_EGRESS HW_ALLOW HW_SIDE_AUDIT HW_SIDE_CLOSED HW_ENDPOINT_SLOW HW_DEVICE_SLOT
        HW_DEVICE_UPLINK HW_DEVICE_POD HW_DEVICE_HOLD HW_STATE_FLOWS HW_SCOPE_FLOW HW_SCOPE_SERVICE HW_FLOW_STACK
        HW_FLOW_SERVICE HW_FLOW_HAIRPIN HW_FLOW_SWAPPED HW_FLOW_HOST HW_FLOW_FIN_WITH HW_FLOW_FIN_AGAINST HW_FLOW_MOVED HW_NEW
        HW_ESTABLISHED HW_CLOSING HW_FRONT_DROP HW_FRONT_ADDRESS HW_BACKEND_LEAVING HW_MARK_REJECT HW_EVENT_NEW
        HW_EVENT_DROP HW_EVENT_CHANGED HW_EVENT_REVOKED HW_EVENT_UNKNOWN HW_EVENT_AUDIT
    );
    all.push(("HW_REASONS", counters::HW_REASONS.into()));
    all.push(("HW_COUNT_DROP", counters::HW_COUNT_DROP.into()));
    all.push(("HW_COUNTERS", counters::HW_COUNTERS.into()));
    all.extend(abi::CountIndex::ALL.iter().map(|count| (count.c_name(), *count as u64)));
    all.extend(abi::DropReason::ALL.iter().map(|reason| (reason.c_name(), *reason as u64)));
    all
}

#[test]
fn the_c_compiler_agrees_with_sizes_offsets_and_numbers() {
    let mut source = format!("#include <stddef.h>\n#include <linux/types.h>\n{HEADER}\n");
    for layout in layouts() {
        let name = layout.name;
        writeln!(source, "_Static_assert(sizeof(struct {name}) == {}, \"{name}\");", layout.size).unwrap();
        for (field, offset, size) in layout.fields {
            let at = format!("{name}.{field}");
            writeln!(source, "_Static_assert(offsetof(struct {name}, {field}) == {offset}, \"{at}\");")
                .unwrap();
            writeln!(
                source,
                "_Static_assert(sizeof(((struct {name} *)0)->{field}) == {size}, \"size of {at}\");"
            )
            .unwrap();
        }
    }
    for (name, value) in numbers() {
        writeln!(source, "_Static_assert({name} == {value}, \"{name}\");").unwrap();
    }
    let path = std::env::temp_dir().join(format!("hawser-layout-{}.c", std::process::id()));
    std::fs::write(&path, source).unwrap();
    let done = Command::new(env!("HAWSER_BPF_CLANG"))
        .args(["-target", "bpf", "-fsyntax-only", "-I", env!("HAWSER_BPF_INCLUDE")])
        .arg(&path)
        .output()
        .unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn what_is_given_to_the_kernel_has_no_bytes_without_a_name() {
    for layout in layouts().iter().filter(|layout| layout.whole) {
        let sum: usize = layout.fields.iter().map(|(_, _, size)| size).sum();
        assert_eq!(sum, layout.size, "{}", layout.name);
    }
}

/// Structures of the header and the names of their fields.
fn structures_of(header: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    let mut open: Option<(String, BTreeSet<String>)> = None;
    for line in without_comments(header).lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("struct ").and_then(|rest| rest.strip_suffix(" {")) {
            open = Some((name.to_owned(), BTreeSet::new()));
        } else if line == "};" {
            found.extend(open.take());
        } else if let (Some((_, fields)), Some(declaration)) = (&mut open, line.strip_suffix(';')) {
            let name = declaration.split_whitespace().next_back().unwrap();
            fields.insert(name.split('[').next().unwrap().to_owned());
        }
    }
    found
}

fn without_comments(text: &str) -> String {
    let mut rest = text;
    let mut out = String::new();
    while let Some((before, after)) = rest.split_once("/*") {
        out.push_str(before);
        rest = after.split_once("*/").map_or("", |(_, after)| after);
    }
    out + rest
}

/// Names of the header's numbers: of `#define NAME value` and of enumerators.
fn numbers_of(header: &str) -> BTreeSet<String> {
    let text = without_comments(header);
    let lines = text.lines().map(str::trim);
    lines
        .filter_map(|line| {
            let name = match line.strip_prefix("#define ") {
                // An include guard has no value.
                Some(rest) => rest.split_once(' ').filter(|(_, value)| !value.trim().is_empty())?.0,
                None => line.strip_suffix(',')?.split(' ').next()?,
            };
            name.starts_with("HW_").then(|| name.to_owned())
        })
        .collect()
}

#[test]
fn nothing_of_the_header_is_missing_here() {
    let ours: BTreeMap<String, BTreeSet<String>> = layouts()
        .iter()
        .map(|layout| {
            (layout.name.to_owned(), layout.fields.iter().map(|field| field.0.to_owned()).collect())
        })
        .collect();
    assert_eq!(structures_of(HEADER), ours);
    let ours: BTreeSet<String> = numbers().iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(numbers_of(HEADER), ours);
}
