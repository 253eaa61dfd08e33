use super::*;

const OWN: [u8; 4] = [10, 0, 0, 5];

fn allowed(hosts: &[&str], origins: &[&str]) -> Allowed {
    let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
    Allowed::new(IpAddr::from(OWN), &texts(hosts), &texts(origins)).unwrap()
}

/// What both ports say of a request; with `body`, one comes.
fn ask(line: &str, headers: &[(&str, &str)], body: bool, allowed: &Allowed) -> [Result<(), ErrorCode>; 2] {
    let (method, uri) = line.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(()).unwrap();
    let asked = Asked::by(&request);
    let code = |result: Result<(), Error>| result.map_err(|error| error.code);
    [code(check_public(asked, allowed)), code(check_admin(asked, body, allowed))]
}

const DENIED: Result<(), ErrorCode> = Err(ErrorCode::PermissionDenied);

#[test]
fn a_name_is_ours_or_refused() {
    let allowed = allowed(&["Models.example.org"], &[]);
    for (host, expected) in [
        ("localhost", Ok(())),
        ("localhost:8081", Ok(())),
        ("LOCALHOST.:8081", Ok(())),
        ("a.localhost", Ok(())),
        ("127.0.0.1", Ok(())),
        ("127.8.8.8:1", Ok(())),
        ("[::1]:8081", Ok(())),
        ("[::ffff:127.0.0.1]", Ok(())),
        ("10.0.0.5:8081", Ok(())),
        ("models.example.org:443", Ok(())),
        ("10.0.0.6", DENIED),
        ("evil.example", DENIED),
        ("evil.example:8081", DENIED),
        ("localhost.evil.example", DENIED),
        ("127.0.0.1.evil.example", DENIED),
        ("xmodels.example.org", DENIED),
        ("", DENIED),
        ("localhost, evil.example", DENIED),
    ] {
        for line in ["GET /v1/models", "POST /v1/models/a/b/rollback"] {
            // Names were configured, so that the public port checks them too, whoever asks.
            assert_eq!(ask(line, &[("host", host)], false, &allowed), [expected; 2], "{line} {host:?}");
        }
        if !host.is_empty() && !host.contains(' ') {
            let line = format!("GET http://{host}/v1/models");
            assert_eq!(ask(&line, &[], false, &allowed), [expected; 2], "{line}");
        }
    }
    let two = [("host", "localhost"), ("host", "evil.example")];
    assert_eq!(ask("GET /", &two, false, &allowed), [DENIED; 2]);
    assert_eq!(ask("GET http://evil.example/", &[("host", "localhost")], false, &allowed), [DENIED; 2]);
    assert_eq!(ask("GET /", &[], false, &allowed), [DENIED; 2], "HTTP/1.1 names its host");
}

#[test]
fn on_all_addresses_any_address_is_ours_and_no_name() {
    let allowed = Allowed::new(IpAddr::from([0, 0, 0, 0]), &[], &[]).unwrap();
    assert_eq!(ask("POST /", &[("host", "192.0.2.7:80")], false, &allowed), [Ok(()); 2]);
    assert_eq!(ask("POST /", &[("host", "evil.example")], false, &allowed), [Ok(()), DENIED]);
}

#[test]
fn an_old_probe_needs_no_host() {
    let check = |method: &str| {
        let request = Request::builder().method(method).uri("/").version(Version::HTTP_10).body(()).unwrap();
        check_admin(Asked::by(&request), false, &allowed(&[], &[]))
    };
    assert_eq!(check("GET"), Ok(()));
    assert!(check("POST").is_err());
}

#[test]
fn programs_reach_the_public_port_under_any_name_and_browsers_under_ours() {
    let allowed = allowed(&[], &[]);
    let public = |headers: &[(&str, &str)]| ask("POST /v2/models/a/b/infer", headers, true, &allowed)[0];
    assert_eq!(public(&[("host", "h")]), Ok(()));
    assert_eq!(public(&[]), Ok(()));
    assert_eq!(public(&[("host", "evil.example"), ("origin", "http://evil.example")]), DENIED, "rebound");
    assert_eq!(public(&[("host", "evil.example"), ("sec-fetch-site", "same-origin")]), DENIED, "rebound");
}

#[test]
fn what_changes_or_predicts_comes_from_our_own_pages() {
    let allowed = allowed(&[], &["https://Console.example.org"]);
    for (headers, expected) in [
        (vec![], Ok(())),
        (vec![("origin", "http://localhost:8080")], Ok(())),
        (vec![("origin", "http://localhost:8080"), ("sec-fetch-site", "same-origin")], Ok(())),
        (vec![("sec-fetch-site", "none")], Ok(())),
        (vec![("origin", "https://console.example.org"), ("sec-fetch-site", "cross-site")], Ok(())),
        (vec![("origin", "http://localhost:9999")], DENIED),
        (vec![("origin", "http://localhost")], DENIED),
        (vec![("origin", "http://evil.example")], DENIED),
        (vec![("origin", "http://console.example.org")], DENIED),
        (vec![("origin", "null")], DENIED),
        (vec![("origin", "")], DENIED),
        (vec![("sec-fetch-site", "cross-site")], DENIED),
        (vec![("sec-fetch-site", "same-site")], DENIED),
        (vec![("origin", "http://localhost:8080"), ("sec-fetch-site", "cross-site")], DENIED),
    ] {
        let headers: Vec<_> = [("host", "localhost:8080")].into_iter().chain(headers).collect();
        for method in ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let line = format!("{method} /x");
            assert_eq!(ask(&line, &headers, false, &allowed), [expected; 2], "{line} {headers:?}");
        }
        assert_eq!(ask("GET /x", &headers, false, &allowed), [Ok(()); 2], "{headers:?} only looks");
    }
}

#[test]
fn the_admin_port_takes_json_and_uploads() {
    let (json, wrong) = ("application/json", Err(ErrorCode::UnsupportedFormat));
    for (line, kind, body, expected) in [
        ("POST /v1/models/a/b/promote", Some(json), true, Ok(())),
        ("POST /v1/models/a/b/promote", Some("Application/JSON; charset=utf-8"), true, Ok(())),
        ("POST /v1/models/a/b/promote", Some("text/plain"), true, wrong),
        ("POST /v1/models/a/b/promote", Some("text/plain; application/json"), true, wrong),
        ("POST /v1/models/a/b/promote", Some("application/x-www-form-urlencoded"), true, wrong),
        ("POST /v1/models/a/b/promote", None, true, wrong),
        ("POST /v1/models/a/b/rollback", None, false, Ok(())),
        ("PUT /v1/models/a/b/blobs/00", Some("application/octet-stream"), true, Ok(())),
        ("PUT /v1/models/a/b/blobs/00", None, true, Ok(())),
        ("PUT /v1/models/a/b/blobs/00", Some("text/plain"), true, wrong),
        ("PUT /v1/models/a/b/blobs/00", Some(json), true, wrong),
        ("POST /v1/models/a/b/blobs/00", Some("application/octet-stream"), true, wrong),
    ] {
        let kind = kind.map(|kind| ("content-type", kind));
        let headers: Vec<_> = [("host", "localhost")].into_iter().chain(kind).collect();
        assert_eq!(ask(line, &headers, body, &allowed(&[], &[]))[1], expected, "{line} {kind:?}");
    }
}

#[test]
fn settings_that_cannot_match_are_refused() {
    let check = |hosts: &[&str], origins: &[&str], expected: &str| {
        let texts = |texts: &[&str]| texts.iter().map(ToString::to_string).collect::<Vec<_>>();
        let error = Allowed::new(IpAddr::from(OWN), &texts(hosts), &texts(origins)).unwrap_err();
        assert!(error.message.contains(expected), "{error}");
    };
    check(&["http://a"], &[], "allowed_hosts: \"http://a\"");
    check(&["a:80"], &[], "allowed_hosts: \"a:80\"");
    check(&[""], &[], "allowed_hosts");
    check(&[], &["a.example"], "allowed_origins: \"a.example\"");
    check(&[], &["https://a.example/"], "allowed_origins");
    check(&[], &["null"], "allowed_origins");
}
