//! Standard input and output, with and without a terminal.

use std::time::Duration;

use orlop_proto::agent::v1::{ResizeRequest, Stdio, Stream};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tonic::Code;

use crate::harness::{ALL, Agent, IDLE, OUTPUT, process, read_all, spec};

#[tokio::test]
async fn ten_megabytes_each_way_are_equal_to_the_byte() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("big");
    agent.create("big", &spec(&["cat"]), ALL).await.unwrap();
    let mut stdin = agent.stream("big", "", Stream::Stdin).await.unwrap();
    let mut stdout = agent.stream("big", "", Stream::Stdout).await.unwrap();
    agent.start_process("big", "").await.unwrap();
    let sent: Vec<u8> = (0..10u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let copy = sent.clone();
    let writer = tokio::spawn(async move {
        stdin.write_all(&copy).await.unwrap();
        stdin.shutdown().await.unwrap();
        stdin
    });
    // A host that is slow at first makes cat wait, and nothing is lost by it.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let mut got = Vec::new();
    stdout.read_to_end(&mut got).await.unwrap();
    assert!(got == sent);
    writer.await.unwrap();
    assert_eq!(agent.wait("big", "").await.unwrap().exit_status, 0);
}

#[tokio::test]
async fn streams_that_are_not_wanted_are_null() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("null");
    let wanted = spec(&["sh", "-c", "cat; echo lost; echo seen >&2"]);
    let stderr = Stdio {
        stderr: true,
        ..Stdio::default()
    };
    agent.create("null", &wanted, stderr).await.unwrap();
    assert!(agent.stream("null", "", Stream::Stdin).await.is_none());
    assert!(agent.stream("null", "", Stream::Stdout).await.is_none());
    let stderr = agent.stream("null", "", Stream::Stderr).await.unwrap();
    assert!(agent.stream("null", "", Stream::Stderr).await.is_none());
    assert!(agent.stream("no", "", Stream::Stderr).await.is_none());
    agent.start_process("null", "").await.unwrap();
    assert_eq!(read_all(stderr).await, "seen\n");
    assert_eq!(agent.wait("null", "").await.unwrap().exit_status, 0);
}

#[tokio::test]
async fn the_exit_waits_for_its_output_and_for_no_child() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("w");
    agent.create("w", &spec(&IDLE), OUTPUT).await.unwrap();
    agent.start_process("w", "").await.unwrap();

    let chatty = process(&["sh", "-c", "echo bye"]);
    agent.exec("w", "late", &chatty, OUTPUT).await.unwrap();
    agent.start_process("w", "late").await.unwrap();
    let wait = timeout(Duration::from_millis(500), agent.wait("w", "late")).await;
    assert!(wait.is_err(), "the output has not been taken");
    let stdout = agent.stream("w", "late", Stream::Stdout).await.unwrap();
    let stderr = agent.stream("w", "late", Stream::Stderr).await.unwrap();
    assert_eq!(agent.wait("w", "late").await.unwrap().exit_status, 0);
    assert_eq!(read_all(stdout).await + &read_all(stderr).await, "bye\n");

    let daemon = process(&["sh", "-c", "sleep 1000 & echo up"]);
    agent.exec("w", "daemon", &daemon, OUTPUT).await.unwrap();
    let mut stdout = agent.stream("w", "daemon", Stream::Stdout).await.unwrap();
    let _stderr = agent.stream("w", "daemon", Stream::Stderr).await.unwrap();
    agent.start_process("w", "daemon").await.unwrap();
    let wait = timeout(Duration::from_secs(5), agent.wait("w", "daemon")).await;
    assert_eq!(wait.unwrap().unwrap().exit_status, 0);
    let mut up = [0; 3];
    stdout.read_exact(&mut up).await.unwrap();
    assert_eq!(&up, b"up\n");
    agent.delete("w", "daemon").await.unwrap();
    // With the process forgotten, its stream ends.
    assert_eq!(read_all(stdout).await, "");
}

#[tokio::test]
async fn a_wait_that_comes_before_the_start_is_answered() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("early");
    agent.create("early", &spec(&IDLE), OUTPUT).await.unwrap();
    agent.start_process("early", "").await.unwrap();
    let none = Stdio::default();
    let quick = process(&["sh", "-c", "exit 9"]);
    agent.exec("early", "e", &quick, none).await.unwrap();
    let request = orlop_proto::agent::v1::WaitRequest {
        container: "early".into(),
        exec: "e".into(),
    };
    let mut client = agent.client.clone();
    let wait = tokio::spawn(async move { client.wait(request).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    agent.start_process("early", "e").await.unwrap();
    let response = wait.await.unwrap().unwrap().into_inner();
    assert_eq!(response.exit_status, 9);
}

#[tokio::test]
async fn a_terminal_is_one() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("tty");
    let mut wanted = spec(&[
        "sh",
        "-c",
        "stty size; read line; echo got $line >&2; stty size",
    ]);
    wanted["process"]["terminal"] = json!(true);
    wanted["process"]["consoleSize"] = json!({"width": 100, "height": 40});
    agent.create("tty", &wanted, ALL).await.unwrap();
    assert!(agent.stream("tty", "", Stream::Stderr).await.is_none());
    let mut stdin = agent.stream("tty", "", Stream::Stdin).await.unwrap();
    let mut stdout = agent.stream("tty", "", Stream::Stdout).await.unwrap();
    agent.start_process("tty", "").await.unwrap();
    let mut size = [0; 8];
    stdout.read_exact(&mut size).await.unwrap();
    assert_eq!(&size, b"40 100\r\n");
    let resize = ResizeRequest {
        container: "tty".into(),
        exec: String::new(),
        width: 80,
        height: 24,
    };
    agent.client.resize(resize).await.unwrap();
    stdin.write_all(b"hello\n").await.unwrap();
    assert_eq!(read_all(stdout).await, "hello\r\ngot hello\r\n24 80\r\n");
    assert_eq!(agent.wait("tty", "").await.unwrap().exit_status, 0);
    agent.delete("tty", "").await.unwrap();
}

#[tokio::test]
async fn exec_with_a_terminal() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    // As long as CRI's ids are: a socket whose path holds both could not be made.
    let (container, exec) = ("c".repeat(64), "e".repeat(64));
    let (container, exec) = (container.as_str(), exec.as_str());
    agent.make_root(container);
    agent.create(container, &spec(&IDLE), OUTPUT).await.unwrap();
    agent.start_process(container, "").await.unwrap();
    let resize = ResizeRequest {
        container: container.into(),
        exec: String::new(),
        width: 80,
        height: 24,
    };
    let refused = agent.client.resize(resize).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let mut shell = process(&["sh", "-c", "test -t 0 && echo tty; exit 3"]);
    shell["terminal"] = json!(true);
    agent.exec(container, exec, &shell, ALL).await.unwrap();
    let stdout = agent.stream(container, exec, Stream::Stdout).await.unwrap();
    let _stdin = agent.stream(container, exec, Stream::Stdin).await.unwrap();
    agent.start_process(container, exec).await.unwrap();
    assert_eq!(read_all(stdout).await, "tty\r\n");
    assert_eq!(agent.wait(container, exec).await.unwrap().exit_status, 3);
}

#[tokio::test]
async fn hostile_hellos_do_no_harm() {
    let Some(mut agent) = Agent::start().await else {
        return;
    };
    agent.make_root("h");
    // More silent connections than are greeted at a time.
    let mut silent = Vec::new();
    for _ in 0..80 {
        silent.push(agent.raw_stream().await);
    }
    let mut large = agent.raw_stream().await;
    large.write_all(&u32::MAX.to_be_bytes()).await.unwrap();
    assert_eq!(agent.run("h", &spec(&["echo", "fine"])).await.0, "fine\n");
    assert_eq!(large.read_u8().await.unwrap(), 1);
    // The silent ones are let go.
    let mut byte = [0; 1];
    for mut connection in silent {
        let read = timeout(Duration::from_secs(12), connection.read(&mut byte)).await;
        assert_eq!(read.unwrap().unwrap_or(0), 0);
    }
}
