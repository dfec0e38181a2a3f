//! What the chart refuses, by the field's name, and that its files agree with each other. Needs helm: `make chart`.

use std::{collections::HashMap, path::Path, time::Duration};

use serde_json::{Value, json};
use storagelink_e2e::{kube::binaries::Binaries, programs};

fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the crate is in the workspace")
}

fn good() -> Value {
    json!({
        "service": {"target": "array.example", "fingerprint": "ab".repeat(32), "existingSecret": "array"},
        "storageClasses": [{"name": "gold", "parameters": {"system": "lio0", "aggregate": "aggr0"}}],
    })
}

/// What `helm template` says: its manifest, or its error.
async fn template(values: &Value) -> Result<String, String> {
    let cache = storagelink_e2e::artifacts::cache_directory();
    let helm = Binaries::in_cache(&cache).helm();
    let chart = checkout().join("charts/storagelink-csi");
    let argv = [
        helm.as_os_str(),
        "template".as_ref(),
        "storagelink-csi".as_ref(),
        chart.as_os_str(),
        "--namespace=storagelink-csi".as_ref(),
        "--values=-".as_ref(),
    ];
    let limit = Duration::from_secs(60);
    let done = programs::run(&argv, &HashMap::new(), values.to_string().as_bytes(), limit)
        .await
        .expect("helm runs");
    match done.exit {
        0 => Ok(String::from_utf8_lossy(&done.stdout).into_owned()),
        _ => Err(String::from_utf8_lossy(&done.stderr).into_owned()),
    }
}

/// `good` with one value changed, by a JSON pointer.
fn with(pointer: &str, value: Value) -> Value {
    let mut all = good();
    let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
    let parent = all.pointer_mut(parent).expect("the parent is there");
    match parent {
        Value::Array(list) => list[key.parse::<usize>().expect("an index")] = value,
        other => other[key] = value,
    }
    all
}

#[tokio::test]
#[ignore = "needs helm"]
async fn what_is_wrong_is_refused_by_its_name() {
    template(&good()).await.expect("the good values render");
    let cases = [
        ("/servic", json!({}), "servic"),
        ("/service/tarrget", json!("x"), "tarrget"),
        ("/service/target", json!(""), "/service/target"),
        ("/service/target", json!("a b"), "/service/target"),
        ("/service/port", json!(0), "/service/port"),
        ("/service/port", json!(65536), "/service/port"),
        ("/service/port", json!("21605"), "/service/port"),
        ("/service/fingerprint", json!("abcd"), "/service/fingerprint"),
        (
            "/service/fingerprint",
            json!(""),
            "service.fingerprint or service.ca is required",
        ),
        ("/service/ca", json!("no PEM"), "/service/ca"),
        (
            "/service/ca",
            json!("-----BEGIN CERTIFICATE-----"),
            "exclude each other",
        ),
        (
            "/service/existingSecret",
            json!(""),
            "service.existingSecret is required",
        ),
        ("/service/existingSecret", json!("A B"), "/service/existingSecret"),
        (
            "/service/password",
            json!("secret"),
            "service.existingSecret excludes",
        ),
        ("/service/username", json!("a:b"), "/service/username"),
        (
            "/fabrics",
            json!({"A": ["10.0.0.0/8"]}),
            "at '/fabrics': additional properties 'A'",
        ),
        ("/fabrics", json!({"a": []}), "/fabrics/a"),
        ("/fabrics", json!({"a": ["10.0.0.0"]}), "/fabrics/a/0"),
        ("/controller", json!({"replicas": 0}), "/controller/replicas"),
        ("/controller", json!({"replica": 2}), "replica"),
        (
            "/controller",
            json!({"resources": {"limits": {"memory": "lots"}}}),
            "/controller/resources/limits/memory",
        ),
        ("/node", json!({"maxUnavailable": "0%"}), "/node/maxUnavailable"),
        (
            "/node",
            json!({"kubeletDirectory": "var/lib/kubelet"}),
            "/node/kubeletDirectory",
        ),
        (
            "/node",
            json!({"iscsiNetns": "run/netns/host"}),
            "/node/iscsiNetns",
        ),
        ("/node", json!({"hostRoot": "/host/"}), "/node/hostRoot"),
        ("/node", json!({"sharedKernel": "yes"}), "/node/sharedKernel"),
        (
            "/node",
            json!({"sharedKernel": true, "installHostConfig": true}),
            "node.sharedKernel excludes node.installHostConfig",
        ),
        (
            "/node",
            json!({"sharedKernel": true, "iscsid": "auto"}),
            "node.sharedKernel needs node.iscsid host",
        ),
        ("/sidecars", json!({"registrar": {}}), "registrar"),
        ("/log", json!({"level": "verbose"}), "/log/level"),
        (
            "/storageClasses/0/parameters/agregate",
            json!("aggr0"),
            "agregate",
        ),
        (
            "/storageClasses/0/parameters/provisionType",
            json!("fat"),
            "/storageClasses/0/parameters/provisionType",
        ),
        (
            "/storageClasses/0/fsType",
            json!("vfat"),
            "/storageClasses/0/fsType",
        ),
        ("/storageClasses/0/name", json!("Gold"), "/storageClasses/0/name"),
        (
            "/storageClasses/0/secret",
            json!({"name": "x"}),
            "/storageClasses/0/secret",
        ),
        ("/volumeSnapshotClasses", json!([{}]), "/volumeSnapshotClasses/0"),
    ];
    for (pointer, value, named) in cases {
        let error = template(&with(pointer, value.clone()))
            .await
            .expect_err(&format!("{pointer} = {value} is refused"));
        assert!(error.contains(named), "{pointer} = {value}: {error}");
        assert!(
            !error.contains("secret\""),
            "a password is shown for {pointer}: {error}"
        );
    }
}

#[tokio::test]
#[ignore = "needs helm"]
async fn no_password_is_shipped_and_an_own_one_is_only_in_the_secret() {
    let mut values = good();
    values["service"] = json!({
        "target": "array.example", "fingerprint": "ab".repeat(32), "username": "csi", "password": "hunter22",
    });
    let manifest = template(&values).await.expect("renders");
    assert!(!manifest.contains("hunter22"), "the password is in the open");
    let encoded = "aHVudGVyMjI=";
    assert_eq!(manifest.matches(encoded).count(), 1);
    let secret = manifest
        .split("\n---")
        .find(|document| document.contains(encoded))
        .expect("found");
    assert!(secret.contains("kind: Secret"), "{secret}");
    let manifest = template(&good()).await.expect("renders");
    assert!(!manifest.contains("kind: Secret"), "a Secret is shipped");
}

#[tokio::test]
#[ignore = "needs helm"]
async fn nodes_that_share_a_kernel_get_what_the_plugin_asks_for() {
    let alone = template(&good()).await.expect("renders");
    for absent in ["--shared-kernel", "iscsi-netns", "MPATHUTIL_NODE"] {
        assert!(!alone.contains(absent), "{absent} is in the default");
    }
    assert!(alone.contains("        - name: host\n          hostPath: {path: /, type: Directory}\n"));
    let values = json!({"sharedKernel": true, "iscsiNetns": "/run/netns/host", "hostRoot": "/kernel-host"});
    let shared = template(&with("/node", values)).await.expect("renders");
    for wanted in [
        "            - --shared-kernel\n",
        "            - --iscsi-netns=/run/iscsi-netns\n",
        "            - {name: iscsi-netns, mountPath: /run/iscsi-netns, readOnly: true}\n",
        "        - name: iscsi-netns\n          hostPath: {path: /run/netns/host, type: File}\n",
        "        - name: host\n          hostPath: {path: /kernel-host, type: Directory}\n",
        "            - name: MPATHUTIL_NODE\n              valueFrom: {fieldRef: {fieldPath: spec.nodeName}}\n",
    ] {
        assert!(shared.contains(wanted), "{wanted} is not in\n{shared}");
    }
}

#[tokio::test]
#[ignore = "needs helm"]
async fn the_sidecars_are_those_that_the_lab_builds() {
    let manifest = template(&good()).await.expect("renders");
    let cache = storagelink_e2e::artifacts::cache_directory();
    let binaries = Binaries::in_cache(&cache);
    for (_, image) in binaries.sidecar_images() {
        assert!(manifest.contains(&format!("image: {image}\n")), "{image}");
    }
}

#[test]
fn every_rule_has_its_reason_beside_it() {
    let templates = checkout().join("charts/storagelink-csi/templates");
    let mut rules = 0;
    for entry in std::fs::read_dir(templates).expect("templates") {
        let path = entry.expect("an entry").path();
        let text = std::fs::read_to_string(&path).expect("a text");
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in lines.iter().enumerate() {
            if line.trim_start().starts_with("- apiGroups:") {
                rules += 1;
                let before = lines[number - 1].trim_start();
                assert!(
                    before.starts_with("# ") && before.len() > 15,
                    "{}:{}",
                    path.display(),
                    number + 1
                );
            }
        }
    }
    assert!(rules > 15, "only {rules} rules");
}
