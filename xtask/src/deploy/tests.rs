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
    let refused = |text: &str, word: &str| {
        let error = manifests(&chart(), &parse_values(text).unwrap()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    };
    refused("podCIDRs: []", "podCIDRs");
    for place in ["/tmp/pins", "/sys/fs/bpf", "/sys/fs/bpf/", "/sys/fs/bpf/../x", "/sys/fs/bpf/a/b"] {
        refused(&format!("bpffs: {{pinDirectory: {place}}}"), "no directory of the node's BPF file system");
    }
    refused("metrics: {podMonitor: true}", "does not reach");
    refused("agent: {maxUnavailable: '1'}", "is no share");
}

#[test]
fn every_choice_is_in_the_manifests() {
    let values = parse_values(
        "{podCIDRs: [10.42.0.0/16], apiServers: ['192.0.2.9:6443'], nonMasqueradeCIDRs: [192.0.2.0/24], mtu: 1400, keepaliveSeconds: 0, \
          tunnel: {enabled: false}, bpffs: {mount: false, pinDirectory: /sys/fs/bpf/mesh}, operators: {serviceAccounts: true}, metrics: {address: '0.0.0.0:51891', podMonitor: true, dashboard: true}, \
          nodeSelector: {pool: 'on'}, imagePullSecrets: [pull], cni: {chain: [portmap]}, agent: {memoryLimit: 256Mi}}").unwrap();
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
    let pod = find("DaemonSet", "mesh-agent")["spec"]["template"]["spec"].clone();
    assert_eq!(pod["nodeSelector"]["pool"], "on");
    assert_eq!(pod["imagePullSecrets"][0]["name"], "pull");
    assert!(pod.get("initContainers").is_none(), "{pod}");
    assert_eq!(pod["containers"][0]["resources"]["limits"]["memory"], "256Mi");
    let args = pod["containers"][1]["args"].to_string();
    assert!(args.contains("--chain=portmap"), "{args}");
    find("PodMonitor", "mesh-agent");
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
    assert_eq!(accounts(&Values::default()), ["hawser-mesh-agent", "mesh-agent"]);
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

/// The same objects, by Helm itself, for the defaults and for values that switch on and fill in what they leave out. Without Helm
/// the test says so and proves the rest: this interpreter's own tests.
#[test]
fn helm_renders_the_same_objects() {
    if Command::new("helm").arg("version").output().is_err() {
        eprintln!("not run: helm is not installed; the chart is rendered by our own interpreter alone");
        return;
    }
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
    for (number, text) in HELM_VALUES.iter().enumerate() {
        let file = folder.path().join(format!("{number}.yaml"));
        std::fs::write(&file, text).unwrap();
        let output = Command::new("helm")
            .args(["template", "hawser"])
            .arg(chart())
            .arg("-f")
            .arg(&file)
            .output()
            .unwrap();
        assert!(output.status.success(), "{text}: {}", String::from_utf8_lossy(&output.stderr));
        let theirs = serde_saphyr::from_multiple(&String::from_utf8(output.stdout).unwrap()).unwrap();
        let ours = objects(&manifests(&chart(), &parse_values(text).unwrap()).unwrap());
        assert_eq!(sorted(theirs), sorted(ours), "{text}");
    }
}

const HELM_VALUES: [&str; 6] = [
    "{}",
    "clustermesh: {enabled: true, replicas: 2}",
    "uninstall: {enabled: true, cutPods: true, keepAudit: true, resetForwarding: true}",
    "operators: {serviceAccounts: true}\ntunnel: {enabled: false}\nbpffs: {mount: false}",
    "apiServers: ['192.0.2.9:6443', '[2001:db8::1]:6443']\nnonMasqueradeCIDRs: [192.0.2.0/24]\npodCIDRs: [10.42.0.0/16]\nmtu: 1400",
    "metrics: {address: '0.0.0.0:51891', podMonitor: true, dashboard: true}\nnodeSelector: {pool: 'a \"b\"'}\nagent: {memoryLimit: 256Mi}",
];
