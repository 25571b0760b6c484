//! Pods that cannot have the sidecar, and what they are told.

use super::*;

#[test]
fn what_cannot_have_the_sidecar_is_told_why() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 14] = [
        (|pod| pod["metadata"]["annotations"][INJECT] = json!("yes"), "neither"),
        (|pod| pod["spec"]["containers"] = json!([]), "no containers"),
        (|pod| pod["spec"]["hostNetwork"] = json!(true), "hostNetwork"),
        (|pod| pod["spec"]["os"] = json!({ "name": "windows" }), "Windows"),
        (
            |pod| pod["spec"]["nodeSelector"] = json!({ "kubernetes.io/os": "windows" }),
            "Windows",
        ),
        (
            |pod| pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 8030 }]),
            "port 8030",
        ),
        (
            |pod| pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 8031, "protocol": "TCP" }]),
            "port 8031",
        ),
        (
            |pod| pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 8032 }]),
            "port 8032",
        ),
        (
            |pod| {
                pod["metadata"]["annotations"]["flagtap.dev/config"] = json!("admin: { listen: \"127.0.0.1:9000\" }");
                pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 9000 }]);
            },
            "port 9000",
        ),
        (
            |pod| pod["metadata"]["annotations"]["flagtap.dev/config"] = json!("listen: 127.0.0.1:8040"),
            "listens on port 8040",
        ),
        (
            |pod| {
                let ports = json!([{ "containerPort": 8030, "protocol": "TCP" }]);
                pod["spec"]["initContainers"] = json!([{ "name": "proxy", "restartPolicy": "Always", "ports": ports }]);
            },
            "port 8030",
        ),
        (
            |pod| pod["spec"]["resources"] = json!({ "limits": { "memory": "64Mi" } }),
            "spec.resources",
        ),
        (
            |pod| {
                let names: Vec<String> = (0..60).map(|n| format!("V{n}")).collect();
                pod["metadata"]["annotations"][ENV] = json!(names.join(","));
                let containers: Vec<Value> = (0..5).map(|n| json!({ "name": format!("c{n}") })).collect();
                pod["spec"]["containers"] = json!(containers);
            },
            "more than 256 variables",
        ),
        (
            |pod| pod["spec"]["volumes"] = json!([{ "name": "flagtap-data" }]),
            "a volume named flagtap-data",
        ),
    ];
    for (change, says) in cases {
        let why = refused(&native(), &changed(change));
        assert!(why.contains(says), "{says}: {why}");
    }
    for config in [
        "admin: off",
        "admin: { listen: \"127.0.0.1:9000\" }",
        "admin: { listen: \"${ADMIN}\" }",
    ] {
        let elsewhere = changed(|pod| {
            pod["metadata"]["annotations"]["flagtap.dev/config"] = json!(config);
            pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 8032 }]);
        });
        injected(&native(), &elsewhere);
    }
    let other_protocol = changed(|pod| {
        pod["spec"]["containers"][0]["ports"] = json!([{ "containerPort": 8030, "protocol": "UDP" }]);
    });
    injected(&native(), &other_protocol);
}

#[test]
fn a_job_gets_a_native_sidecar_only() {
    for policy in ["Never", "OnFailure"] {
        let job = changed(|pod| pod["spec"]["restartPolicy"] = json!(policy));
        assert!(refused(&ordinary(), &job).contains("never complete"));
        injected(&native(), &job);
    }
}
