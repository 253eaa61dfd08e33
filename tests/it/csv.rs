//! CSV files on a model's own URL. They stream in both directions, in bounded memory.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use modelhost_tests::{Client, Package, Process, held_out};
use serde_json::Value;

/// The held-out rows as a CSV file: the header, then the rows.
fn file() -> (String, String) {
    let (rows, _) = held_out("xgboost");
    let rows = rows.as_array().unwrap();
    let names: Vec<&String> = rows[0].as_object().unwrap().keys().collect();
    let value = |row: &Value, name: &String| match &row[name] {
        Value::String(text) => format!("\"{text}\""),
        Value::Null => String::new(),
        other => other.to_string(),
    };
    let line = |row| names.iter().map(|name| value(row, name)).collect::<Vec<_>>().join(",") + "\n";
    let header = names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(",") + "\n";
    (header, rows.iter().map(line).collect())
}

/// A `curl` that sends standard input as it arrives and prints the answer.
fn curl(client: &Client, arguments: &[&str]) -> Command {
    let mut curl = Command::new("curl");
    curl.args(["-sS", "-X", "POST", "-H", "Content-Type: text/csv", "-H", "Expect:", "-T", "-"])
        .args(arguments);
    curl.arg(format!("{}/models/demo/credit/", client.url));
    curl.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    curl
}

/// Sends the header, then the rows `times` times. Returns curl's exit code and the answer.
fn send(client: &Client, arguments: &[&str], times: usize, rows: &str) -> (Option<i32>, String) {
    let header = file().0;
    let rows = rows.to_owned();
    let mut child = curl(client, arguments).spawn().expect("curl is installed");
    let mut input = child.stdin.take().unwrap();
    let sender = std::thread::spawn(move || {
        let sent = input.write_all(header.as_bytes());
        // The host does not read a refused file to its end.
        drop(sent.and_then(|()| (0..times).try_for_each(|_| input.write_all(rows.as_bytes()))));
    });
    let mut answer = String::new();
    child.stdout.take().unwrap().read_to_string(&mut answer).unwrap();
    sender.join().unwrap();
    (child.wait().unwrap().code(), answer)
}

/// The process's peak resident memory, in bytes.
fn peak_resident(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.child.id())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn a_file_passes_through_in_bounded_memory() {
    let data = tempfile::tempdir().unwrap();
    let host = Process::start(data.path());
    host.client.register("demo/credit", &Package::folder("examples/credit-risk/xgboost"), true);
    let (rows, (_, expected)) = (file().1, held_out("xgboost"));
    let (code, answer) = send(&host.client, &[], 1, &rows);
    assert_eq!((code, answer.lines().next()), (Some(0), Some("probability")), "{answer}");
    let came: Vec<f64> = answer.lines().skip(1).map(|line| line.parse().unwrap()).collect();
    assert!(
        came.len() == expected.len()
            && came.iter().zip(&expected).all(|(came, expected)| (came - expected).abs() < 1e-6)
    );

    let times = (32 << 20) / rows.len();
    // Registration had a higher peak, so reset it. Source: proc(5), clear_refs.
    std::fs::write(format!("/proc/{}/clear_refs", host.child.id()), "5").unwrap();
    let before = peak_resident(&host);
    let (code, answer) = send(&host.client, &[], times, &rows);
    let grown = peak_resident(&host) - before;
    assert_eq!((code, answer.lines().count()), (Some(0), times * expected.len() + 1));
    println!("{} bytes passed through {grown} bytes", times * rows.len());
    assert!(grown < 8 << 20, "resident memory grew by {grown} bytes");
}

#[test]
fn what_is_wrong_is_said_before_the_first_answer_and_cuts_the_connection_after() {
    let data = tempfile::tempdir().unwrap();
    let host = Process::start(data.path());
    host.client.register("demo/credit", &Package::folder("examples/credit-risk/xgboost"), true);
    let (_, rows) = file();
    let broken = "1,2\n";
    let (code, answer) = send(&host.client, &["-w", "%{http_code}"], 1, broken);
    assert_eq!(code, Some(0));
    assert!(answer.contains("record 0") && answer.ends_with("400"), "{answer}");
    // By this row, answers were sent. curl reports that the transfer ended early (18) or broke (92, 56).
    let late = rows.repeat(20) + broken;
    let (code, answer) = send(&host.client, &[], 1, &late);
    assert!(matches!(code, Some(18 | 56 | 92)), "curl ended with {code:?}");
    assert!(answer.starts_with("probability\n") && answer.lines().count() > 100);
    assert_eq!(send(&host.client, &[], 1, &rows).0, Some(0));
}
