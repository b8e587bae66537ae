//! The objects that make pods: Deployment, Job, CronJob, DaemonSet.

use std::time::Duration;

use orlop_testbed::cluster::kubectl::has_condition;
use orlop_testbed::stories::size;
use serde_json::{Value, json};

use crate::stage::{LIMIT, WAIT, shell, stage, template};

#[test]
fn a_deployment_rolls_over_while_its_service_answers_every_request() {
    let Some(stage) = stage() else { return };
    let replicas = size(2, 10);
    let serve = "mkdir /www; hostname >/www/index.html; trap 'sleep 3; exit 0' TERM; busybox httpd -f -h /www -p 80 & while :; do sleep 1 & wait $!; done";
    let mut container = shell("web", serve);
    container["readinessProbe"] =
        json!({ "tcpSocket": { "port": 80 }, "periodSeconds": 1, "timeoutSeconds": 30 });
    container["resources"] = json!({ "requests": { "cpu": "10m", "memory": "16Mi" } });
    // A pod that ends is still asked until every rule has forgotten it, and an emulated node takes its time for that.
    container["lifecycle"] = json!({ "preStop": { "exec": { "command": ["sleep", "20"] } } });
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "web" },
        "spec": {
            "replicas": replicas, "selector": { "matchLabels": { "app": "web" } },
            "strategy": { "rollingUpdate": { "maxUnavailable": 0, "maxSurge": 1 } },
            "template": template("web", json!([container]), json!({ "terminationGracePeriodSeconds": 60 })),
        },
    });
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "web" },
        "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80 }] },
    });
    // An ordinary container beside the guests, which asks once it knows whom, until it is told to stop. A request that is late has not
    // failed: on a busy emulated node some took more than twenty seconds. The limit is not wget's own: with that, the one of Debian's static
    // busybox crashes.
    // It counts from the first answer: the service's rules come a moment after its pods are ready.
    let ask = "until test -e /address; do sleep 0.2; done; \
               until wget -q -O /dev/null http://$(cat /address)/; do sleep 0.2; done; \
               until test -e /stop; do if timeout 120 wget -q -O /dev/null http://$(cat /address)/; then echo ok; else echo failed at $(date +%T); fi >>/answers; \
               sleep 0.2; done; touch /stopped; sleep infinity";
    let client = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "client" },
        "spec": { "terminationGracePeriodSeconds": 0, "containers": [shell("main", ask)] },
    });
    stage.apply(&[deployment, service, client]);
    let limit = format!("--timeout={}s", LIMIT.as_secs() * replicas);
    let rolled = ["rollout", "status", "deployment/web", &limit];
    stage
        .kubectl
        .run(&rolled)
        .unwrap_or_else(|error| panic!("{error:#}\n{}", stage.story_so_far()));
    stage.wait_until_ready("client");

    let address = stage
        .kubectl
        .run(&["get", "service/web", "--output=jsonpath={.spec.clusterIP}"])
        .unwrap();
    stage.inside("client", &format!("echo {address} >/new; mv /new /address"));
    stage
        .kubectl
        .run(&["rollout", "restart", "deployment/web"])
        .unwrap();
    stage.kubectl.run(&rolled).unwrap();
    let stop = "touch /stop; until test -e /stopped; do sleep 0.2; done";
    stage.inside("client", stop);
    let answers = stage.inside("client", "sort /answers | uniq -c");
    assert!(answers.contains("ok"), "nothing was answered: {answers}");
    assert!(
        !answers.contains("failed"),
        "some requests failed: {answers}"
    );
}

#[test]
fn a_job_runs_until_it_has_succeeded() {
    let Some(stage) = stage() else { return };
    let mut container = shell(
        "main",
        "echo attempt; test -e /kept/tried || { touch /kept/tried; exit 3; }",
    );
    container["volumeMounts"] = json!([{ "name": "kept", "mountPath": "/kept" }]);
    let spec = json!({
        "restartPolicy": "OnFailure",
        "volumes": [{ "name": "kept", "emptyDir": {} }],
    });
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": { "name": "work" },
        "spec": { "backoffLimit": 3, "template": template("work", json!([container]), spec) },
    });
    stage.apply(&[job]);
    let done = stage
        .kubectl
        .wait_for("job that is complete", LIMIT, |kubectl| {
            Ok(kubectl
                .get(&["job", "work"])?
                .filter(|job| has_condition(job, "Complete")))
        });
    let done = done.unwrap_or_else(|error| panic!("{error:#}\n{}", stage.story_so_far()));
    assert_eq!(done["status"]["succeeded"], 1);
    let pods = stage
        .kubectl
        .get(&["pods", "--selector=app=work"])
        .unwrap()
        .unwrap();
    let status = &pods["items"][0]["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 1, "{status}");
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3, "{status}");
}

#[test]
fn a_daemon_set_and_a_cron_job_have_guests_too() {
    let Some(stage) = stage() else { return };
    let daemon = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": { "name": "everywhere" },
        "spec": {
            "selector": { "matchLabels": { "app": "everywhere" } },
            "template": template("everywhere", json!([shell("main", WAIT)]), json!({})),
        },
    });
    let once = template(
        "tick",
        json!([shell("main", "uname -r")]),
        json!({ "restartPolicy": "Never" }),
    );
    let cron = json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": { "name": "tick" },
        "spec": { "schedule": "* * * * *", "concurrencyPolicy": "Forbid", "jobTemplate": { "spec": { "template": once } } },
    });
    stage.apply(&[daemon, cron]);
    let ready = |kubectl: &orlop_testbed::cluster::kubectl::Kubectl| {
        let set = kubectl.get(&["daemonset", "everywhere"])?;
        Ok(set.filter(|set| set["status"]["numberReady"] == 1))
    };
    stage
        .kubectl
        .wait_for("daemon that is ready", LIMIT, ready)
        .unwrap();
    let is_done = |job: &Value| has_condition(job, "Complete");
    let ticked = stage.kubectl.wait_for(
        "job of the schedule",
        LIMIT + Duration::from_secs(60),
        |kubectl| {
            let jobs = kubectl.get(&["jobs"])?;
            Ok(jobs.filter(|jobs| {
                jobs["items"]
                    .as_array()
                    .is_some_and(|jobs| jobs.iter().any(is_done))
            }))
        },
    );
    ticked.unwrap_or_else(|error| panic!("{error:#}\n{}", stage.story_so_far()));
}
