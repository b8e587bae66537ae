//! What the Kubernetes tests of other runtimes that put pods into VMs look at, and that nothing else here does.

use serde_json::{Value, json};

use orlop_testbed::cluster::kubectl::has_condition;

use crate::stage::{LIMIT, Stage, WAIT, phase, pod, shell, stage, template};

#[test]
fn a_pod_is_who_its_fields_say() {
    let Some(stage) = stage() else { return };
    let mut main = shell("main", WAIT);
    main["securityContext"] = json!({
        "runAsUser": 1000, "runAsGroup": 2000, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
        "capabilities": { "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] },
        "seccompProfile": { "type": "RuntimeDefault" },
    });
    main["env"] = json!([
        { "name": "NODE", "valueFrom": { "fieldRef": { "fieldPath": "spec.nodeName" } } },
        { "name": "LIMIT", "valueFrom": { "resourceFieldRef": { "resource": "limits.memory", "divisor": "1Mi" } } },
        { "name": "GREETING", "value": "hello $(NODE)" },
    ]);
    main["resources"] = json!({ "limits": { "memory": "48Mi" } });
    main["volumeMounts"] = json!([
        { "name": "data", "mountPath": "/data" }, { "name": "host", "mountPath": "/machine-id" },
        { "name": "perhaps", "mountPath": "/perhaps" }, { "name": "many", "mountPath": "/many" },
    ]);
    let spec = json!({
        "hostname": "one", "subdomain": "many", "shareProcessNamespace": true,
        "hostAliases": [{ "ip": "192.0.2.7", "hostnames": ["elsewhere.example"] }],
        "dnsPolicy": "None", "dnsConfig": { "nameservers": ["192.0.2.53"], "searches": ["story.example"] },
        "securityContext": {
            "fsGroup": 3000, "supplementalGroups": [4000],
            "sysctls": [{ "name": "net.ipv4.ip_unprivileged_port_start", "value": "1" }],
        },
        "volumes": [
            { "name": "data", "emptyDir": {} },
            { "name": "host", "hostPath": { "path": "/proc/sys/kernel/random/boot_id", "type": "File" } },
            { "name": "perhaps", "configMap": { "name": "absent", "optional": true } },
            { "name": "many", "projected": { "sources": [
                { "configMap": { "name": "config", "items": [{ "key": "key", "path": "deep/down" }] } },
                { "downwardAPI": { "items": [{ "path": "name", "fieldRef": { "fieldPath": "metadata.name" } }] } },
            ]}},
        ],
    });
    let config = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "config" }, "data": { "key": "value" } });
    let neighbour = shell("neighbour", &format!("exec -a seen sleep 1000 & {WAIT}"));
    stage.apply(&[config, pod("who", json!([main, neighbour]), spec)]);
    stage.wait_until_ready("who");
    for (script, said) in [
        ("id -u; id -g; id -G", "1000\n2000\n2000 3000 4000\n"),
        ("echo $GREETING $LIMIT", "hello worker 48\n"),
        ("hostname; grep -c elsewhere.example /etc/hosts", "one\n1\n"),
        (
            "grep -v ^options /etc/resolv.conf",
            "search story.example\nnameserver 192.0.2.53\n",
        ),
        ("cat /proc/sys/net/ipv4/ip_unprivileged_port_start", "1\n"),
        ("touch /data/x && stat -c '%u %g' /data/x", "1000 3000\n"),
        ("touch /x 2>/dev/null || echo read-only", "read-only\n"),
        (
            "ls /perhaps | wc -l; cat /many/deep/down /many/name",
            "0\nvaluewho",
        ),
        ("wc -c </machine-id", "37\n"),
        // No new privileges; of capabilities, one that the user's program does not inherit; a filter.
        (
            "grep -E '^(CapBnd|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\\t'",
            "CapBnd:0000000000000400\nNoNewPrivs:1\nSeccomp:2\n",
        ),
        // The other container's processes are there to be seen.
        ("ps | grep -c '[s]leep 1000'", "1\n"),
    ] {
        assert_eq!(inside(&stage, "who", script), said, "{script}");
    }
    let now = stage.kubectl.get(&["pod", "who"]).unwrap().unwrap();
    assert_eq!(now["status"]["qosClass"], "Burstable");
}

#[test]
fn a_container_that_takes_too_much_memory_is_killed_and_the_rest_of_its_pod_is_not() {
    let Some(stage) = stage() else { return };
    let mut greedy = shell("greedy", "sleep 3; tail -c 200m /dev/zero >/dev/null");
    greedy["resources"] = json!({ "limits": { "memory": "32Mi" } });
    let other = shell("other", WAIT);
    let spec = json!({ "restartPolicy": "Never" });
    stage.apply(&[pod("tight", json!([greedy, other]), spec)]);
    let killed = stage.wait_for("tight", "has a killed container", |pod| {
        state(pod, "greedy").get("terminated").is_some()
    });
    let ended = &state(&killed, "greedy")["terminated"];
    assert_eq!(ended["reason"], "OOMKilled", "{ended}");
    assert_eq!(ended["exitCode"], 137, "{ended}");
    assert!(state(&killed, "other").get("running").is_some());
    assert_eq!(phase(&killed), "Running");
    assert_eq!(
        stage
            .kubectl
            .run(&["exec", "tight", "--container=other", "--", "echo", "alive"])
            .unwrap(),
        "alive\n"
    );
}

#[test]
fn a_job_has_as_many_guests_at_once_as_it_may() {
    let Some(stage) = stage() else { return };
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "parallel" },
        "spec": {
            "completions": 3, "parallelism": 3, "completionMode": "Indexed",
            "template": template("parallel", json!([shell("main", "echo $JOB_COMPLETION_INDEX")]), json!({ "restartPolicy": "Never" })),
        },
    });
    stage.apply(&[job]);
    let done = stage
        .kubectl
        .wait_for("job that is complete", LIMIT, |kubectl| {
            Ok(kubectl
                .get(&["job", "parallel"])?
                .filter(|job| has_condition(job, "Complete")))
        });
    done.unwrap_or_else(|error| panic!("{error:#}\n{}", stage.story_so_far()));
    let said = stage
        .kubectl
        .run(&["logs", "--selector=app=parallel", "--prefix=false"])
        .unwrap();
    let mut said: Vec<_> = said.lines().collect();
    said.sort_unstable();
    assert_eq!(said, ["0", "1", "2"]);
}

fn inside(stage: &Stage, pod: &str, script: &str) -> String {
    let line = ["exec", pod, "--container=main", "--", "sh", "-c", script];
    stage.kubectl.run(&line).unwrap()
}

/// The state of a pod's container.
fn state<'p>(pod: &'p Value, container: &str) -> &'p Value {
    let statuses = pod["status"]["containerStatuses"].as_array();
    let found = statuses
        .into_iter()
        .flatten()
        .find(|status| status["name"] == container);
    found.map_or(&Value::Null, |status| &status["state"])
}
