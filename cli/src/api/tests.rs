use expect_test::expect;
use kube::core::Status;

use super::*;

const ASKED: Asked = Asked { verb: "list", resource: "pods", namespace: Some("hawser-system") };

fn cluster() -> Cluster {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let client = || Client::try_from(Config::new("http://192.0.2.9:6443".parse().unwrap())).unwrap();
    Cluster {
        client: client(),
        proxy: client(),
        server: "https://192.0.2.9:6443".to_owned(),
        grant: OPERATOR,
        deadline: Duration::from_secs(5),
    }
}

fn refused(code: u16) -> kube::Error {
    let status = Status { code, message: format!("the server's words of {code}"), ..Status::default() };
    kube::Error::Api(Box::new(status))
}

#[tokio::test]
async fn each_failure_names_what_was_wanted_and_what_to_do() {
    let cluster = cluster();
    let broken = kube::Error::Service("connection refused".into());
    let mut all: Vec<ApiError> = [401, 403, 404, 500].map(|code| cluster.error(ASKED, &refused(code))).into();
    all.push(cluster.error(ASKED, &broken));
    all.push(ApiError::Silent { asked: ASKED, server: cluster.server.clone(), after: cluster.deadline });
    all.push(ApiError::NoContext { context: "mars".into(), known: "earth, moon".into() });
    all.push(no_kubeconfig(&broken));
    let text: Vec<String> = all.iter().map(ToString::to_string).collect();
    expect![[r#"
        could not list pods in hawser-system: the API server at https://192.0.2.9:6443 does not know you: the server's words of 401; renew the credentials in the kubeconfig
        you may not list pods in hawser-system: the server's words of 403; deploy/cli.yaml has a role that allows it, for an administrator to bind you to
        could not list pods in hawser-system: the server's words of 404
        could not list pods in hawser-system: the server's words of 500
        could not list pods in hawser-system: the API server at https://192.0.2.9:6443 does not answer: ServiceError: connection refused; is it running, and is its address the one in the kubeconfig?
        could not list pods in hawser-system: no answer from the API server at https://192.0.2.9:6443 in 5 s
        the kubeconfig has no context "mars"; it has: earth, moon
        no way to the API server: ServiceError: connection refused; give --kubeconfig FILE, set KUBECONFIG, or run it in a pod with a service account"#]].assert_eq(&text.join("\n"));
}

#[tokio::test]
async fn a_role_is_promised_only_where_there_is_one() {
    let said = |grant| Cluster { grant, ..cluster() }.error(ASKED, &refused(403)).to_string();
    for (grant, words) in
        [(AUDITOR, "deploy/audit.yaml has a role"), (OPERATOR, "deploy/cli.yaml has a role")]
    {
        assert!(said(grant).contains(words), "{grant}");
    }
    for grant in [KEY_MAKER, JOINER] {
        let text = said(grant);
        assert!(text.contains("administrator") && text.contains("no role of deploy/"), "{text}");
    }
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_not_waited_for() {
    let cluster = Cluster { deadline: Duration::ZERO, ..cluster() };
    let never = cluster.within::<()>(ASKED, std::future::pending()).await.unwrap_err();
    assert!(matches!(never, ApiError::Silent { .. }), "{never}");
}

#[tokio::test]
async fn a_context_that_is_not_there_is_named_beside_those_that_are() {
    let place = tempfile::tempdir().unwrap();
    let path = place.path().join("config");
    let context = |name: &str| format!("- name: {name}\n  context: {{cluster: {name}, user: u}}\n");
    let server = |name: &str, host: u8| {
        format!("- name: {name}\n  cluster: {{server: \"http://192.0.2.{host}:6443\"}}\n")
    };
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: earth\ncontexts:\n{}{}clusters:\n{}{}users:\n- name: u\n  user: {{token: t}}\n",
        context("earth"),
        context("moon"),
        server("earth", 1),
        server("moon", 2),
    );
    std::fs::write(&path, text).unwrap();
    let access = |context: Option<&str>| Access {
        kubeconfig: Some(path.clone()),
        context: context.map(str::to_owned),
    };
    let url = async |context| access(context).config().await.map(|config| config.cluster_url.to_string());
    assert_eq!(url(None).await.unwrap(), "http://192.0.2.1:6443/");
    assert_eq!(url(Some("moon")).await.unwrap(), "http://192.0.2.2:6443/");
    let error = url(Some("mars")).await.unwrap_err().to_string();
    assert!(error.contains("\"mars\"") && error.contains("earth, moon"), "{error}");
}

#[test]
fn no_proxy_spares_the_servers_that_it_names_the_proxy_of_the_environment_alone() {
    let server: Uri = "https://10.1.2.3:6443".parse().unwrap();
    let (proxy, other): (Uri, Uri) =
        ("http://proxy:3128".parse().unwrap(), "http://bastion:1".parse().unwrap());
    let ask = |of: Option<&Uri>, spared: &str| {
        let environment = |name: &str| match name {
            "https_proxy" => Some("http://proxy:3128".to_owned()),
            "NO_PROXY" => Some(spared.to_owned()),
            _ => None,
        };
        spares(of, &server, environment)
    };
    for spared in ["*", "10.0.0.0/8", "example.com,10.1.2.3"] {
        assert!(ask(Some(&proxy), spared), "{spared}");
        assert!(!ask(Some(&other), spared), "of the kubeconfig");
        assert!(!ask(None, spared));
    }
    for kept in ["", "192.0.2.0/24", "proxy"] {
        assert!(!ask(Some(&proxy), kept), "{kept}");
    }
}
