use super::*;

#[test]
fn jobs_and_answers_come_back_as_they_went() {
    let compile = Compile {
        kind: Kind::Snapshot,
        wasm: Bytes::from_static(b"wasm"),
        functions: vec![(Bytes::from_static(b"key"), Bytes::from_static(b"code"))],
        state: vec![
            ("memory".into(), Value::Memory(Bytes::from_static(&[0; 9]))),
            ("global".into(), Value::Number(u64::MAX)),
        ],
    };
    let graphs = |onnxruntime| Untried {
        files: vec![("a.onnx".into(), Bytes::from_static(b"graph")), ("w".into(), Bytes::new())],
        onnxruntime,
    };
    for task in [
        Task::Compile(compile.clone()),
        Task::TryGraphs(graphs(None)),
        Task::TryGraphs(graphs(Some("lib.so".into()))),
    ] {
        let job = Job { bytes: 7, task };
        let mut sent = Vec::new();
        job.write(&mut sent).unwrap();
        assert_eq!(Job::read(&mut &sent[..]).unwrap(), job);
        for cut in 0..sent.len() {
            assert!(Job::read(&mut &sent[..cut]).is_err(), "cut at {cut}");
        }
    }
    for answer in [
        Answer::Compiled { code: compile.wasm.clone(), functions: compile.functions.clone() },
        Answer::Tried,
        Answer::Refused("tables".into()),
        Answer::Failed("it is no component".into()),
    ] {
        let mut sent = Vec::new();
        answer.write(&mut sent).unwrap();
        assert_eq!(Answer::read(&mut &sent[..], 1000).unwrap(), answer);
        assert!(Answer::read(&mut &sent[..], 8).is_err(), "it is longer than allowed");
    }
}

#[test]
fn whatever_reads_graphs_decides_whether_they_were_tried() {
    let untried = |name: &str, content: &'static [u8], onnxruntime: Option<&str>| {
        let files = vec![(name.to_owned(), Bytes::from_static(content))];
        key_of(&Untried { files, onnxruntime: onnxruntime.map(PathBuf::from) })
    };
    let keys = [
        untried("a", b"bc", None),
        untried("ab", b"c", None),
        untried("a", b"bc", Some("x")),
        untried("a", b"b", None),
    ];
    assert_eq!(std::collections::HashSet::from(keys).len(), keys.len());
}
