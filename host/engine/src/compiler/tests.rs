use super::*;

#[test]
fn jobs_and_answers_come_back_as_they_went() {
    let job = Job {
        kind: Kind::Snapshot,
        bytes: 7,
        wasm: Bytes::from_static(b"wasm"),
        functions: vec![(Bytes::from_static(b"key"), Bytes::from_static(b"code"))],
        state: vec![
            ("memory".into(), Value::Memory(Bytes::from_static(&[0; 9]))),
            ("global".into(), Value::Number(u64::MAX)),
        ],
    };
    let mut sent = Vec::new();
    job.write(&mut sent).unwrap();
    assert_eq!(Job::read(&mut &sent[..]).unwrap(), job);
    for cut in 0..sent.len() {
        assert!(Job::read(&mut &sent[..cut]).is_err(), "cut at {cut}");
    }
    for answer in [
        Answer::Compiled { code: job.wasm.clone(), functions: job.functions.clone() },
        Answer::Refused("tables".into()),
        Answer::Failed("it is no component".into()),
    ] {
        let mut sent = Vec::new();
        answer.write(&mut sent).unwrap();
        assert_eq!(Answer::read(&mut &sent[..], 1000).unwrap(), answer);
        assert!(Answer::read(&mut &sent[..], 10).is_err(), "it is longer than allowed");
    }
}
