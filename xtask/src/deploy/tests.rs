use std::io::Write as _;
use std::process::Command;

use super::*;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn chart() -> std::path::PathBuf {
    root().join("deploy/chart/hawser")
}

fn objects(manifests: &BTreeMap<String, String>) -> Vec<Value> {
    let parsed = manifests.values().flat_map(|text| serde_saphyr::from_multiple::<Value>(text).unwrap());
    parsed.filter(|object| !object.is_null()).collect()
}

#[test]
fn what_is_committed_is_what_is_rendered() {
    for (path, text) in rendered(root()).unwrap() {
        let committed = std::fs::read_to_string(root().join(&path)).unwrap_or_default();
        assert!(committed == text, "{path} is not as its source has it: cargo xtask manifests");
    }
}

#[test]
fn the_documented_defaults_are_the_defaults() {
    assert_eq!(parse_values(&values_yaml().unwrap()).unwrap(), Values::default());
    assert_eq!(parse_values("").unwrap(), Values::default());
    let all = values_yaml().unwrap();
    let undocumented = all
        .lines()
        .zip(all.lines().skip(1))
        .find(|(before, line)| !line.trim_start().starts_with('#') && !before.trim_start().starts_with('#'));
    assert_eq!(undocumented, None, "a value without a description");
}

#[test]
fn the_image_is_the_one_that_is_built() {
    let chart = std::fs::read_to_string(chart().join("Chart.yaml")).unwrap();
    for field in ["version", "appVersion"] {
        assert!(chart.contains(&format!("\n{field}: {}\n", env!("CARGO_PKG_VERSION"))), "{field}: {chart}");
    }
}

#[test]
fn wrong_values_are_refused_by_name() {
    let error = parse_values("podCIDR: [10.0.0.0/8]").unwrap_err().to_string();
    assert!(error.contains("podCIDR"), "{error}");
    let error = parse_values("dataPath: maybe").unwrap_err().to_string();
    assert!(error.contains("maybe"), "{error}");
    for (text, word) in REFUSED {
        let refused = parse_values(text).and_then(|values| manifests(&chart(), &values)).unwrap_err();
        let error = format!("{refused:#}");
        assert!(error.contains(word), "{text}: {error}");
    }
    // Only the whole of the values shows it, and no schema.
    for (text, word) in [
        ("rotation: {quietSeconds: 600}", "more than rotation.quietSeconds"),
        ("podCIDRs: [10.0.0.0/8, 10.244.0.0/16]", "podCIDRs: 10.244.0.0/16 overlaps 10.0.0.0/8 of podCIDRs"),
        (
            "{podCIDRs: [10.244.0.0/16], nonMasqueradeCIDRs: [10.0.0.0/8]}",
            "nonMasqueradeCIDRs: 10.0.0.0/8 overlaps 10.244.0.0/16 of podCIDRs",
        ),
        ("serviceCIDRs: [8.0.0.0/7]", "serviceCIDRs: 8.0.0.0/7 is larger than a /8"),
        (
            "{podCIDRs: [10.244.0.0/16], serviceCIDRs: [10.244.128.0/20]}",
            "serviceCIDRs: 10.244.128.0/20 overlaps 10.244.0.0/16 of podCIDRs",
        ),
    ] {
        let error = manifests(&chart(), &parse_values(text).unwrap()).unwrap_err();
        assert!(error.to_string().contains(word), "{text}: {error}");
    }
}

/// Values that nobody means, and a word of the refusal. Helm refuses each of them by the schema.
const REFUSED: [(&str, &str); 48] = [
    ("podCIDRs: []", "podCIDRs"),
    ("podCIDRs: [10.244.0.0]", "podCIDRs"),
    ("podCIDRs: [10.244.0.0/33]", "podCIDRs"),
    ("podCIDRs: [0.0.0.0/0]", "podCIDRs"),
    ("podCIDRs: ['fd00::/129']", "podCIDRs"),
    ("nonMasqueradeCIDRs: [192.0.2.1]", "nonMasqueradeCIDRs"),
    ("serviceCIDRs: [10.96.0.0]", "serviceCIDRs"),
    ("apiServers: [192.0.2.9]", "apiServers"),
    ("apiServers: ['https://192.0.2.9:6443']", "apiServers"),
    ("clusterName: ''", "clusterName"),
    ("clusterName: East", "clusterName"),
    ("clusterName: east-", "clusterName"),
    ("clusterName: a.b", "clusterName"),
    ("rotation: {periodSeconds: 599}", "rotation.periodSeconds"),
    ("rotation: {quietSeconds: 0}", "rotation.quietSeconds"),
    ("rotation: {deadlineSeconds: 19}", "rotation.deadlineSeconds"),
    ("metrics: {podMonitor: true}", "does not reach"),
    ("metrics: {podMonitor: true, address: 127.0.0.2}", "does not reach"),
    ("metrics: {podMonitor: true, address: '[::1]'}", "does not reach"),
    ("metrics: {podMonitorLabels: {app.kubernetes.io/name: x}}", "metrics.podMonitorLabels"),
    ("metrics: {address: '0.0.0.0:51891'}", "metrics.address"),
    ("metrics: {address: '::'}", "metrics.address"),
    ("metrics: {port: 0}", "metrics.port"),
    ("metrics: {port: 65536}", "65536"),
    ("metrics: {port: 51890}", "metrics.port: 51890"),
    ("mtu: 1279", "mtu"),
    ("mtu: 65456", "mtu"),
    ("hostTraffic: {exemptTCPPorts: [0]}", "hostTraffic.exemptTCPPorts"),
    (
        "hostTraffic: {exemptTCPPorts: [1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17]}",
        "hostTraffic.exemptTCPPorts",
    ),
    ("metrics: {prometheusNamespace: Monitoring}", "metrics.prometheusNamespace"),
    ("cni: {chain: [firewall]}", "firewall"),
    ("cni: {chain: [portmap, portmap]}", "twice"),
    ("cni: {confName: 05-hawser.conf}", "cni.confName"),
    ("cni: {confName: ../x.conflist}", "cni.confName"),
    ("cni: {confName: .conflist}", "cni.confName"),
    ("cni: {binDir: opt/cni/bin}", "cni.binDir"),
    ("cni: {confDir: ''}", "cni.confDir"),
    ("clustermesh: {replicas: 0}", "clustermesh.replicas"),
    ("clustermesh: {service: {nodePort: 29999}}", "clustermesh.service.nodePort"),
    ("clustermesh: {service: {nodePort: 32768}}", "clustermesh.service.nodePort"),
    ("clustermesh: {service: {type: ClusterIP, nodePort: 30000}}", "has none"),
    ("nodeSelector: {kubernetes.io/os: linux}", "nodeSelector"),
    ("bpffs: {pinDirectory: /tmp/pins}", "no directory of the node's BPF file system"),
    ("bpffs: {pinDirectory: /sys/fs/bpf}", "no directory of the node's BPF file system"),
    ("bpffs: {pinDirectory: /sys/fs/bpf/../x}", "no directory of the node's BPF file system"),
    ("bpffs: {pinDirectory: /sys/fs/bpf/a/b}", "no directory of the node's BPF file system"),
    ("agent: {maxUnavailable: '1'}", "is no share"),
    ("podCIDR: [10.0.0.0/8]", "podCIDR"),
];

/// Values at the edge of the above, each of which is meant.
const ACCEPTED: [&str; 9] = [
    "global: {imageRegistry: registry.example, other: {deep: [1]}}",
    "podCIDRs: ['fd00:10:244::/56']",
    "apiServers: ['[2001:db8::9]:6443', api.example:443]",
    "clusterName: a",
    "rotation: {periodSeconds: 600, deadlineSeconds: 20}",
    "metrics: {podMonitor: true, address: '[::]', prometheusNamespace: ''}",
    "cni: {chain: [portmap, bandwidth, tuning], confName: 00-hawser.conflist}",
    "clustermesh: {enabled: true, replicas: 5, service: {type: NodePort, nodePort: 32767}}",
    "clustermesh: {service: {type: ClusterIP}}",
];

#[test]
fn values_at_the_edge_are_taken() {
    for text in ACCEPTED {
        manifests(&chart(), &parse_values(text).unwrap()).unwrap_or_else(|error| panic!("{text}: {error:#}"));
    }
}

#[test]
fn every_choice_is_in_the_manifests() {
    let values = parse_values(
        "{podCIDRs: [10.42.0.0/16], apiServers: ['192.0.2.9:6443'], nonMasqueradeCIDRs: [192.0.2.0/24], mtu: 1400, keepaliveSeconds: 0, \
          tunnel: {enabled: false}, bpffs: {mount: false, pinDirectory: /sys/fs/bpf/mesh}, operators: {serviceAccounts: true}, metrics: {address: '0.0.0.0', port: 9100, podMonitor: true, podMonitorLabels: {release: stack}, dashboard: true}, \
          nodeSelector: {pool: 'on'}, imagePullSecrets: [pull], cni: {chain: [portmap]}, agent: {memoryLimit: 256Mi}, seLinuxType: ''}").unwrap();
    let rendered = manifests(&chart(), &values).unwrap();
    assert!(!rendered.contains_key("mesh-tunnel.yaml"), "no tunnel");
    let objects = objects(&rendered);
    let find = |kind: &str, name: &str| {
        objects
            .iter()
            .find(|object| object["kind"] == kind && object["metadata"]["name"] == name)
            .unwrap()
            .clone()
    };
    let config: Value =
        serde_saphyr::from_str(find("ConfigMap", "hawser-config")["data"]["config.yaml"].as_str().unwrap())
            .unwrap();
    assert_eq!(config["podCIDRs"], serde_json::json!(["10.42.0.0/16"]));
    assert_eq!(config["apiServers"], serde_json::json!(["192.0.2.9:6443"]));
    assert_eq!((&config["mtu"], &config["keepaliveSeconds"]), (&1400.into(), &0.into()));
    assert_eq!(config["wireguard"], "kernel");
    assert_eq!(config["bpfPinDir"], "/sys/fs/bpf/mesh");
    assert_eq!(config["metricsAddress"], "0.0.0.0:9100");
    let pod = find("DaemonSet", "mesh-agent")["spec"]["template"]["spec"].clone();
    assert_eq!(pod["nodeSelector"]["pool"], "on");
    assert_eq!(pod["imagePullSecrets"][0]["name"], "pull");
    assert!(pod.get("initContainers").is_none(), "{pod}");
    assert_eq!(pod["containers"][0]["resources"]["limits"]["memory"], "256Mi");
    let args = pod["containers"][1]["args"].to_string();
    assert!(args.contains("--chain=portmap"), "{args}");
    assert_eq!(pod["containers"][0]["ports"][0]["containerPort"], 9100);
    assert!(pod["securityContext"].get("seLinuxOptions").is_none(), "{pod}");
    assert_eq!(find("PodMonitor", "mesh-agent")["metadata"]["labels"]["release"], "stack");
    let dashboard = find("ConfigMap", "hawser-dashboard")["data"]["hawser.json"].clone();
    serde_json::from_str::<Value>(dashboard.as_str().unwrap()).unwrap();
}

/// On a node's network there are two of them during an upgrade, and what the one is asked must not be answered by the other.
#[test]
fn a_tunnel_is_asked_whether_it_goes_on_where_no_other_pod_can_answer() {
    let all = objects(&manifests(&chart(), &Values::default()).unwrap());
    let tunnel =
        all.iter().find(|o| o["kind"] == "DaemonSet" && o["metadata"]["name"] == "mesh-tunnel").unwrap();
    let pod = &tunnel["spec"]["template"]["spec"];
    let container = &pod["containers"][0];
    let socket = |words: &Value| {
        let words = words.as_array().unwrap().iter().filter_map(Value::as_str);
        words.filter_map(|word| word.strip_prefix("--alive=")).next().unwrap_or_default().to_owned()
    };
    let served = socket(&container["args"]);
    let probe = &container["livenessProbe"];
    for probe in [probe, &container["readinessProbe"]] {
        assert_eq!(socket(&probe["exec"]["command"]), served);
    }
    // It gives threads ten seconds.
    assert!(probe["timeoutSeconds"].as_u64() > Some(12), "{probe}");
    let directory = Path::new(&served).parent().unwrap().to_str().unwrap();
    let mounts = container["volumeMounts"].as_array().unwrap();
    let mount = mounts.iter().find(|mount| mount["mountPath"] == directory).unwrap();
    let volumes = pod["volumes"].as_array().unwrap();
    let volume = volumes.iter().find(|volume| volume["name"] == mount["name"]).unwrap();
    assert_eq!(volume["emptyDir"]["medium"], "Memory", "{volume}");
}

/// Whoever may make pods in the namespace could use an account, so there is none that nobody asked for.
#[test]
fn operators_have_roles_and_accounts_only_where_somebody_asks_for_them() {
    let accounts = |values: &Values| -> Vec<String> {
        let all = objects(&manifests(&chart(), values).unwrap());
        let named = all.iter().filter(|object| {
            ["ServiceAccount", "RoleBinding", "ClusterRoleBinding"].iter().any(|kind| object["kind"] == *kind)
        });
        let mut names: Vec<String> =
            named.map(|object| object["metadata"]["name"].as_str().unwrap().to_owned()).collect();
        names.sort();
        names.dedup();
        names
    };
    assert_eq!(accounts(&Values::default()), ["hawser-mesh-agent", "mesh-agent", "mesh-tunnel"]);
    let with = accounts(&parse_values("operators: {serviceAccounts: true}").unwrap());
    for role in ["auditor", "operator", "tester", "viewer"] {
        let name = format!("hawser-{role}");
        assert!(with.contains(&name), "{name} not in {with:?}");
        let default = objects(&manifests(&chart(), &Values::default()).unwrap());
        let has =
            |object: &Value| object["kind"] == "ClusterRole" && object["metadata"]["name"] == name.as_str();
        assert!(default.iter().any(has), "{name}");
    }
}

#[test]
fn removal_takes_the_place_of_agent_and_tunnel() {
    let values = "uninstall: {enabled: true, cutPods: true, keepAudit: true, resetForwarding: true}";
    let values = parse_values(values).unwrap();
    let rendered = manifests(&chart(), &values).unwrap();
    let sets = objects(&rendered);
    let sets: Vec<&Value> = sets.iter().filter(|object| object["kind"] == "DaemonSet").collect();
    let names: Vec<&Value> = sets.iter().map(|set| &set["metadata"]["name"]).collect();
    assert_eq!(names, ["hawser-uninstall"]);
    let pod = &sets[0]["spec"]["template"]["spec"];
    let args = pod["initContainers"][0]["args"].to_string();
    assert!(args.contains("--cut-pods"), "{args}");
    // Who looks once more wants the same.
    for args in [args, pod["containers"][0]["args"].to_string()] {
        assert!(args.contains("--keep-audit") && args.contains("--reset-forwarding"), "{args}");
    }
    // What they read and what they may do in the API is still there.
    for name in ["config.yaml", "rbac.yaml", "admission.yaml"] {
        assert!(rendered.contains_key(name), "{name}");
    }
    assert!(!manifests(&chart(), &Values::default()).unwrap().contains_key("uninstall.yaml"));
}

#[test]
fn nothing_of_ours_is_privileged_but_what_the_values_say() {
    let removal = parse_values("uninstall: {enabled: true}").unwrap();
    let all = [Values::default(), removal].map(|values| objects(&manifests(&chart(), &values).unwrap()));
    for object in all.into_iter().flatten() {
        let text = object.to_string();
        for word in
            ["\"privileged\":true", "hostPID", "mountPropagation", "SYS_RESOURCE", "SYS_MODULE", "hostIPC"]
        {
            assert!(!text.contains(word), "{word} in {}", object["metadata"]["name"]);
        }
        let containers =
            ["initContainers", "containers"].map(|kind| &object["spec"]["template"]["spec"][kind]);
        for container in containers.into_iter().filter_map(Value::as_array).flatten() {
            let context = &container["securityContext"];
            assert_eq!(context["readOnlyRootFilesystem"], true, "{container}");
            assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]), "{container}");
        }
    }
}

/// Of several replicas one leads. All are ready, or a roll-out never ended; so the Services must not select pods, and whoever leads
/// says where it is.
#[test]
fn a_roll_out_of_several_replicas_of_clustermesh_ends_and_only_the_leader_is_called() {
    let values = parse_values("clustermesh: {enabled: true, replicas: 3}").unwrap();
    let all = objects(&manifests(&chart(), &values).unwrap());
    let find = |kind: &str, name: &str| {
        all.iter().find(|object| object["kind"] == kind && object["metadata"]["name"] == name).unwrap()
    };
    let deployment = &find("Deployment", "clustermesh")["spec"];
    assert_eq!(deployment["replicas"], 3);
    // One that takes its place before another one goes: there is a replica at any time, and with one replica, too.
    assert_eq!(
        deployment["strategy"]["rollingUpdate"],
        serde_json::json!({"maxSurge": 1, "maxUnavailable": 0}),
        "{deployment}"
    );
    let container = &deployment["template"]["spec"]["containers"][0];
    let env = container["env"].as_array().unwrap();
    let addresses = env.iter().find(|variable| variable["name"] == "POD_IPS").unwrap();
    assert_eq!(addresses["valueFrom"]["fieldRef"]["fieldPath"], "status.podIPs");
    let serves: Vec<&Value> =
        container["ports"].as_array().unwrap().iter().map(|port| &port["containerPort"]).collect();
    for (name, wanted) in [("clustermesh", 51893), ("clustermesh-dns", 5353)] {
        let service = &find("Service", name)["spec"];
        assert!(service.get("selector").is_none(), "{name} leads to pods that wait: {service}");
        for port in service["ports"].as_array().unwrap() {
            assert_eq!(port["targetPort"], wanted, "{name}");
            assert!(serves.contains(&&port["targetPort"]), "{name}: {port}");
        }
    }
    // It may write these slices: RBAC, and the admission policy by name.
    let policy = find("ValidatingAdmissionPolicy", "hawser-clustermesh").to_string();
    for slice in ["clustermesh-ipv4", "clustermesh-ipv6", "clustermesh-dns-ipv4", "clustermesh-dns-ipv6"] {
        assert!(policy.contains(&format!("'{slice}'")), "{slice}");
    }
}

#[test]
fn clustermesh_takes_calls_names_and_metrics_and_nothing_else() {
    let ingress = |text: &str| {
        let all = objects(&manifests(&chart(), &parse_values(text).unwrap()).unwrap());
        let policy = all.iter().find(|object| object["kind"] == "NetworkPolicy").unwrap();
        let all_pods = all.iter().find(|object| object["kind"] == "Deployment").unwrap();
        assert_eq!(
            policy["spec"]["podSelector"]["matchLabels"],
            all_pods["spec"]["template"]["metadata"]["labels"]
                .as_object()
                .map(|labels| {
                    serde_json::json!({"app.kubernetes.io/name": labels["app.kubernetes.io/name"]})
                })
                .unwrap()
        );
        policy["spec"]["ingress"].as_array().unwrap().clone()
    };
    let rules = ingress("clustermesh: {enabled: true}\nmetrics: {prometheusNamespace: prom}");
    let ports = |rule: &Value| -> Vec<u64> {
        rule["ports"].as_array().unwrap().iter().map(|port| port["port"].as_u64().unwrap()).collect()
    };
    assert_eq!((ports(&rules[0]), rules[0].get("from")), (vec![51893, 5353, 5353], None));
    assert_eq!(ports(&rules[1]), [51891]);
    let from = &rules[1]["from"][0]["namespaceSelector"]["matchLabels"];
    assert_eq!(from["kubernetes.io/metadata.name"], "prom");
    assert_eq!(ingress("clustermesh: {enabled: true}\nmetrics: {prometheusNamespace: ''}").len(), 1);
}

#[test]
fn on_openshift_each_account_may_use_what_its_pods_need() {
    let text = "openshift: {enabled: true}\nclustermesh: {enabled: true}";
    let all = objects(&manifests(&chart(), &parse_values(text).unwrap()).unwrap());
    let mut bound = BTreeMap::new();
    for role in all.iter().filter(|object| object["kind"] == "Role") {
        let rule = &role["rules"][0];
        if rule["resources"] != serde_json::json!(["securitycontextconstraints"]) {
            continue;
        }
        assert_eq!(rule["verbs"], serde_json::json!(["use"]));
        let binding = |object: &&Value| {
            object["kind"] == "RoleBinding" && object["roleRef"]["name"] == role["metadata"]["name"]
        };
        for subject in all.iter().find(binding).unwrap()["subjects"].as_array().unwrap() {
            bound.insert(subject["name"].as_str().unwrap(), rule["resourceNames"][0].as_str().unwrap());
        }
    }
    // Of every pod that we make.
    for object in &all {
        let Some(pod) = object["spec"]["template"].get("spec") else { continue };
        let account = pod["serviceAccountName"].as_str().unwrap();
        let wanted = if pod["hostNetwork"] == true { "privileged" } else { "nonroot-v2" };
        assert_eq!(bound.get(account), Some(&wanted), "{}", object["metadata"]["name"]);
    }
    assert!(!manifests(&chart(), &Values::default()).unwrap().contains_key("openshift.yaml"));
}

/// Helm, where it is in PATH. Where it is not, a test says that it was not run, past the harness, which keeps what tests print by
/// macros to itself; `cargo xtask test` lists it.
fn helm(test: &str) -> Option<Command> {
    if Command::new("helm").arg("version").output().is_ok() {
        return Some(Command::new("helm"));
    }
    let why = "helm is not in PATH; the chart is rendered by our own interpreter alone";
    std::io::stderr().write_all(format!("\n{}{test}: {why}\n", crate::NOT_RUN).as_bytes()).unwrap();
    None
}

fn helm_template(mut helm: Command, values: &Path) -> std::process::Output {
    helm.args(["template", "hawser"]).arg(chart()).arg("-f").arg(values).output().unwrap()
}

#[test]
fn helm_refuses_what_we_refuse() {
    let name = "deploy::tests::helm_refuses_what_we_refuse";
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("values.yaml");
    let refused = REFUSED.iter().map(|(text, _)| (text, false));
    for (text, good) in refused.chain(ACCEPTED.iter().map(|text| (text, true))) {
        let Some(helm) = helm(name) else { return };
        std::fs::write(&file, text).unwrap();
        let output = helm_template(helm, &file);
        assert_eq!(output.status.success(), good, "{text}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// The same objects, by Helm itself, for the defaults and for values that switch on and fill in what they leave out.
#[test]
fn helm_renders_the_same_objects() {
    let sorted = |mut objects: Vec<Value>| {
        objects.retain(|object| !object.is_null());
        objects.sort_by_key(|object| format!("{}/{}", object["kind"], object["metadata"]["name"]));
        for object in &mut objects {
            // A text there, in which Helm puts no quotation marks around words that need none.
            if let Some(text) = object.pointer_mut("/data/config.yaml") {
                *text = serde_saphyr::from_str(text.as_str().unwrap()).unwrap();
            }
        }
        objects
    };
    let folder = tempfile::tempdir().unwrap();
    for (number, text) in VALUE_SETS.iter().enumerate() {
        let file = folder.path().join(format!("{number}.yaml"));
        std::fs::write(&file, text).unwrap();
        let Some(helm) = helm("deploy::tests::helm_renders_the_same_objects") else { return };
        let output = helm_template(helm, &file);
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
        let theirs = serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap();
        let ours = objects(&manifests(&chart(), &parse_values(text).unwrap()).unwrap());
        assert_eq!(sorted(theirs), sorted(ours), "{text}");
    }
}
