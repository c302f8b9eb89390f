//! Chains with Debian's reference plugins after ours, run as libcni runs them.

use serde_json::{Value, json};

use crate::support::{Agent, BINARY, Netns, Output, Reply, finish, success, verb, with};

/// One host: plugins run in a namespace of its own.
struct Host {
    namespace: Netns,
    pod: Netns,
    version: &'static str,
}

impl Host {
    /// One plugin call, as libcni makes it.
    fn call(&self, verb: &str, plugin: &Value, previous: Option<&Value>) -> Output {
        let name = plugin["type"].as_str().unwrap();
        let path = if name == "hawser-cni" { BINARY.to_owned() } else { format!("/usr/lib/cni/{name}") };
        let mut stdin = with(plugin.clone(), json!({"cniVersion": self.version, "name": "hawser"}));
        if let Some(previous) = previous {
            stdin["prevResult"] = previous.clone();
        }
        let mut command = std::process::Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace.path)).arg(path).envs([
            ("CNI_COMMAND", verb),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", self.pod.path.as_str()),
            ("CNI_PATH", "/usr/lib/cni"),
        ]);
        finish(&mut command, stdin.to_string().as_bytes())
    }

    /// ADD through the list; the final result.
    fn add(&self, plugins: &[Value]) -> Value {
        plugins
            .iter()
            .fold(None, |previous, plugin| {
                let output = self.call("ADD", plugin, previous.as_ref());
                assert_eq!(output.exit, 0, "{plugin}: {output:?}");
                Some(output.json())
            })
            .expect("a chain has plugins")
    }

    /// CHECK forwards, DEL backwards, both with the final result.
    fn forward(&self, verb: &str, plugins: &[Value], result: &Value) {
        let order: Vec<_> =
            if verb == "DEL" { plugins.iter().rev().collect() } else { plugins.iter().collect() };
        for plugin in order {
            let output = self.call(verb, plugin, Some(result));
            assert_eq!((output.exit, output.stdout.as_str()), (0, ""), "{verb} {plugin}: {output:?}");
        }
    }
}

/// An agent that makes the veth pair for real, between `host` and the pod's namespace.
fn wiring_agent(host: &str) -> Agent {
    let host = format!("--net={host}");
    Agent::start(move |request, _| {
        if let proto::cni::Verb::Add(attach) = &request.verb {
            let (veth, netns) = (attach.id.veth(), attach.netns.as_str());
            let ip = ["ip", "link", "add", &veth, "address", "02:00:00:00:00:01", "type", "veth"];
            let peer = ["peer", "name", "eth0", "address", "02:00:00:00:00:02", "netns", netns];
            let made = std::process::Command::new("nsenter").arg(&host).args(ip).args(peer).status();
            assert!(made.expect("nsenter").success(), "the veth pair is made");
        }
        Reply::Answer(success(request))
    })
}

fn check_chain(version: &'static str) {
    let host = Host { namespace: Netns::new(), pod: Netns::new(), version };
    let agent = wiring_agent(&host.namespace.path);
    let plugins = [
        agent.config(version),
        json!({"type": "tuning", "sysctl": {"net.core.somaxconn": "517"}, "dataDir": agent.dir.path().join("tuning")}),
        json!({"type": "bandwidth", "runtimeConfig": {"bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000}}}),
    ];
    let result = host.add(&plugins);
    assert_eq!(host.pod.run(&["cat", "/proc/sys/net/core/somaxconn"]).trim(), "517");
    let veth = result["interfaces"][0]["name"].as_str().unwrap().to_owned();
    let qdisc = host.namespace.run(&["tc", "qdisc", "show", "dev", &veth]);
    assert!(qdisc.contains("tbf"), "bandwidth found our veth: {qdisc}");
    let pod = json!([
        result["interfaces"][1]["name"],
        result["interfaces"][1]["sandbox"],
        result["ips"][0]["interface"]
    ]);
    assert_eq!(pod, json!(["eth0", host.pod.path, 1]), "{result}");
    if version != "0.3.1" {
        host.forward("CHECK", &plugins, &result);
    }
    host.forward("DEL", &plugins, &result);
    host.forward("DEL", &plugins, &result);
}

#[test]
fn tuning_and_bandwidth_follow_us_in_1_0_0() {
    check_chain("1.0.0");
}

#[test]
fn tuning_and_bandwidth_follow_us_in_0_4_0() {
    check_chain("0.4.0");
}

#[test]
fn tuning_and_bandwidth_follow_us_in_0_3_1() {
    check_chain("0.3.1");
}

#[test]
fn after_another_main_plugin_with_our_interface_we_refuse() {
    let (agent, netns) = (Agent::good(), Netns::new());
    let previous = json!({"interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": netns.path}]});
    let output = verb("ADD", &netns.path, &with(agent.config("1.0.0"), json!({"prevResult": previous})));
    assert_eq!(output.code(), 7, "{output:?}");
    assert!(output.json()["details"].as_str().unwrap().contains("put hawser-cni first"), "{output:?}");
    assert!(agent.got().is_empty(), "the agent is not asked");
}

#[test]
fn an_earlier_result_without_our_interface_is_kept_and_ours_appended() {
    let (agent, netns) = (Agent::good(), Netns::new());
    let previous = json!({
        "cniVersion": "1.0.0",
        "interfaces": [{"name": "net1", "sandbox": netns.path, "vendor": 1}],
        "ips": [{"address": "192.0.2.3/24", "interface": 0}],
        "routes": [{"dst": "198.51.100.0/24"}],
        "dns": {"nameservers": ["192.0.2.53"]},
        "vendor": {"x": 1},
    });
    let output = verb("ADD", &netns.path, &with(agent.config("1.0.0"), json!({"prevResult": previous})));
    let result = output.json();
    assert_eq!(result["interfaces"][0], previous["interfaces"][0]);
    assert_eq!(result["interfaces"][2]["name"], "eth0");
    let indexes: Vec<_> =
        result["ips"].as_array().unwrap().iter().map(|ip| ip["interface"].clone()).collect();
    assert_eq!(indexes, [0, 2, 2]);
    assert_eq!(result["routes"].as_array().unwrap().len(), 3);
    assert_eq!((&result["dns"], &result["vendor"]), (&previous["dns"], &previous["vendor"]));
}
