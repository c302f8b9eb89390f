use std::net::Ipv4Addr;

use futures::stream;
use mesh_core::numbers::TABLE_PODS;

use super::rules::LOOPBACK;
use super::*;

#[tokio::test]
async fn that_there_is_no_link_is_said_by_the_kernel_and_not_by_a_list_or_a_failure() {
    let kernel = Kernel::connect().expect("netlink");
    // Every namespace has it, and this list lacks it.
    let lo = kernel.find_in(&BTreeMap::new(), LOOPBACK).await.expect("an answer").expect("a link");
    assert!(kernel.has_link(lo.index).await.expect("an answer"));
    let links = BTreeMap::from([("listed".to_owned(), lo.clone())]);
    assert_eq!(kernel.find_in(&links, "listed").await.expect("an answer"), Some(lo));

    assert_eq!(kernel.find_in(&links, "nobody").await.expect("an answer"), None);
    assert!(!kernel.has_link(0x7fff_ffff).await.expect("an answer"));

    // Whatever a file may be called, no link can be.
    for name in ["", "no-link-has-a-name-as-long-as-this", "hw0123456789abc.bak"] {
        assert_eq!(kernel.find_in(&links, name).await.expect("an answer"), None);
    }
    assert!(kernel.has_link(u32::MAX).await.is_err());
}

fn listed(name: &str, index: u32, flags: u16) -> NetlinkMessage<RouteNetlinkMessage> {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes.push(LinkAttribute::IfName(name.to_owned()));
    let mut answer = NetlinkMessage::from(RouteNetlinkMessage::NewLink(message));
    answer.header.flags = flags;
    answer
}

#[tokio::test]
async fn a_list_that_was_interrupted_is_made_again_and_after_a_few_times_goes_as_it_is() {
    let mut dumps = 0;
    let links = steady(|| {
        dumps += 1;
        Ok(stream::iter(match dumps {
            1 => vec![listed("goes", 2, 0), listed("eth0", 3, NLM_F_DUMP_INTR)],
            _ => vec![listed("eth0", 3, 0), listed("left-out", 4, 0)],
        }))
    });
    let links = links.await.expect("links");
    let names: Vec<&str> = links.keys().map(String::as_str).collect();
    assert_eq!((names, dumps), (vec!["eth0", "left-out"], 2));

    let mut dumps = 0;
    let links = steady(|| {
        dumps += 1;
        Ok(stream::iter([listed("busy", dumps, NLM_F_DUMP_INTR)]))
    });
    let links = links.await.expect("links");
    assert_eq!((links["busy"].index, dumps), (ATTEMPTS, ATTEMPTS), "the last one");

    // The real one.
    let kernel = Kernel::connect().expect("netlink");
    assert!(kernel.links().await.expect("links").contains_key(LOOPBACK));
}

#[tokio::test]
async fn a_route_to_a_link_that_a_list_left_out_is_seen_and_so_is_the_link() {
    let kernel = Kernel::connect().expect("netlink");
    let lo = kernel.find_link(LOOPBACK).await.expect("an answer").expect("a link");
    let route_to = |index: u32, last: u8| {
        RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(Ipv4Addr::from([10, 244, 1, last]), 32)
            .table_id(TABLE_PODS)
            .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
            .output_interface(index)
            .build()
    };
    // The second one has gone since the look.
    let messages = [route_to(lo.index, 2), route_to(0x7fff_ffff, 3)];
    let mut links = BTreeMap::new();
    let routes = kernel.routes_by(&messages, &mut links).await.expect("answers");
    let target = Target::Device { device: LOOPBACK.to_owned(), source: None };
    let prefix = "10.244.1.2/32".parse().expect("a prefix");
    assert_eq!(routes, [Route { table: TABLE_PODS, prefix, target }]);
    let found: Vec<(&str, u32)> = links.iter().map(|(name, link)| (name.as_str(), link.index)).collect();
    assert_eq!(found, [(LOOPBACK, lo.index)]);
}
