//! The portal over HTTP, with a real token, a real database and real TLS: what a browser is told
//! to enforce, and what is refused whatever a browser does. Pictures, scripts and the content
//! policy at work are tested in a browser.

use std::time::Duration;

use axum::body::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use jiff::Timestamp;
use opcert::base::encoding::{base64url, sha256};
use opcert::http::Client;
use opcert::http::client::ClientLimits;

use super::scene::{Made, PASSWORD, Scene, succeed, succeed_with};

const FORM: &str = "application/x-www-form-urlencoded";

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    bytes: Bytes,
    body: String,
}

impl Answer {
    #[track_caller]
    fn header(&self, name: &str) -> &str {
        self.headers
            .get(name)
            .unwrap_or_else(|| panic!("no {name}: {:?}", self.headers))
            .to_str()
            .unwrap()
    }

    /// The value of a cookie that is set here.
    fn cookie(&self, name: &str) -> Option<String> {
        self.headers.get_all("set-cookie").iter().find_map(|line| {
            let (pair, _) = line.to_str().unwrap().split_once(';').unwrap();
            pair.strip_prefix(name)?
                .strip_prefix('=')
                .map(str::to_owned)
        })
    }

    /// The token in the page's forms.
    #[track_caller]
    fn csrf(&self) -> String {
        let (_, rest) = self
            .body
            .split_once("name=\"csrf\" value=\"")
            .expect(&self.body);
        rest.split_once('"').unwrap().0.to_owned()
    }

    /// The ids of the fields that say they are wrong; the first of them has the focus.
    fn invalid(&self) -> Vec<&str> {
        let fields: Vec<&str> = self
            .body
            .split('<')
            .filter(|tag| tag.contains("aria-invalid=\"true\""))
            .collect();
        let begins = fields.iter().filter(|tag| tag.contains(" autofocus"));
        assert_eq!(begins.count(), usize::from(!fields.is_empty()));
        fields
            .into_iter()
            .map(|tag| {
                tag.split_once("id=\"")
                    .unwrap()
                    .1
                    .split_once('"')
                    .unwrap()
                    .0
            })
            .collect()
    }

    #[track_caller]
    fn goes_to(&self, path: &str) {
        assert_eq!(self.status, StatusCode::SEE_OTHER, "{}", self.body);
        assert_eq!(self.header("location"), path);
    }
}

/// A browser: keeps cookies, sends what browsers send.
struct Browser<'s> {
    scene: &'s Scene,
    cookies: Vec<(String, String)>,
    language: &'static str,
}

/// The service with alice (super administrator), bob (operator) and carol (business
/// representative), and its portal.
async fn portal() -> Scene {
    let made = tokio::task::spawn_blocking(make).await.unwrap();
    let with_orders = |config: &mut opcert::account::config::Config| {
        config.portal.platform_key = Some("shop".into());
    };
    Scene::of(made, with_orders, Timestamp::now()).await
}

fn make() -> Made {
    let made = Made::bare();
    let run = |arguments: &[&str]| succeed(made.command().args(arguments));
    run(&["account", "create", "acme", "--name", "Acme Ltd"]);
    run(&["platform-key", "create", "shop"]);
    for (who, role, mobile) in [
        ("alice", "super-administrator", "+8613800000001"),
        ("bob", "operator", "+8613800000002"),
    ] {
        let mut create = made.command();
        create
            .args(["operator", "create", who, "--account", "acme"])
            .args(["--role", role, "--mobile", mobile, "--password-file", "-"]);
        succeed_with(&mut create, PASSWORD);
    }
    let mut create = made.command();
    create
        .args(["representative", "create", "carol", "--name", "Carol"])
        .args(["--password-file", "-"]);
    succeed_with(&mut create, PASSWORD);
    made
}

impl<'s> Browser<'s> {
    fn of(scene: &'s Scene) -> Self {
        Self {
            scene,
            cookies: Vec::new(),
            language: "en",
        }
    }

    /// A browser in which somebody is logged in.
    async fn logged_in(scene: &'s Scene, who: &str) -> Self {
        let mut browser = Self::of(scene);
        browser.log_in(who, PASSWORD).await.goes_to(match who {
            "carol" => "/requests",
            _ => "/",
        });
        browser
    }
}

impl Browser<'_> {
    async fn send(&mut self, request: http::request::Builder, body: impl Into<Bytes>) -> Answer {
        let mut request = request
            .header("accept", "text/html,*/*;q=0.8")
            .header("accept-language", self.language)
            .header("host", "127.0.0.1");
        if !self.cookies.is_empty() {
            let pairs: Vec<String> = self
                .cookies
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            request = request.header("cookie", pairs.join("; "));
        }
        let request = request.body(body.into()).unwrap();
        let mut client = Client::connect(&self.scene.target, ClientLimits::default())
            .await
            .unwrap();
        let (head, body) = client.send(request).await.unwrap().into_parts();
        for line in head.headers.get_all("set-cookie") {
            let line = line.to_str().unwrap();
            let (name, value) = line.split_once(';').unwrap().0.split_once('=').unwrap();
            self.cookies.retain(|(known, _)| known != name);
            if !line.contains("Max-Age=0") {
                self.cookies.push((name.into(), value.into()));
            }
        }
        Answer {
            status: head.status,
            headers: head.headers,
            body: String::from_utf8_lossy(&body).into_owned(),
            bytes: body,
        }
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.send(Request::get(path), String::new()).await
    }

    /// Sends a form from the page at `page`, with its token.
    async fn submit(&mut self, page: &str, path: &str, fields: &[(&str, &str)]) -> Answer {
        let csrf = self.get(page).await.csrf();
        let fields = [&[("csrf", csrf.as_str())], fields].concat();
        self.post(path, &fields).await
    }

    /// Uploads a file from the page at `page`, with the token given.
    async fn upload(&mut self, path: &str, csrf: &str, content: &[u8]) -> Answer {
        let head = format!(
            "--edge\r\ncontent-disposition: form-data; name=\"csrf\"\r\n\r\n{csrf}\r\n\
             --edge\r\ncontent-disposition: form-data; name=\"file\"; filename=\"../x.html\"\r\n\
             content-type: text/html\r\n\r\n"
        );
        let body = [head.as_bytes(), content, b"\r\n--edge--\r\n"].concat();
        let request =
            Request::post(path).header("content-type", "multipart/form-data; boundary=edge");
        self.send(request, body).await
    }

    async fn post(&mut self, path: &str, fields: &[(&str, &str)]) -> Answer {
        let request = Request::post(path).header("content-type", FORM);
        self.send(request, encode(fields)).await
    }

    async fn log_in(&mut self, who: &str, password: &str) -> Answer {
        let fields = [("operator", who), ("password", password)];
        if who == "carol" {
            let path = "/login/representative";
            return self.submit(path, path, &fields).await;
        }
        let fields = [&[("account", "acme")], &fields[..]].concat();
        self.submit("/login", "/login", &fields).await
    }
}

fn encode(fields: &[(&str, &str)]) -> String {
    let pairs: Vec<String> = fields
        .iter()
        .map(|(name, value)| {
            let value: String = value.bytes().map(|byte| format!("%{byte:02X}")).collect();
            format!("{name}={value}")
        })
        .collect();
    pairs.join("&")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_other_sites_and_strangers_try_is_refused() {
    let scene = portal().await;

    // What every page tells the browser.
    let mut stranger = Browser::of(&scene);
    let page = stranger.get("/login").await;
    assert_eq!(page.status, StatusCode::OK);
    let policy = page.header("content-security-policy");
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"));
    assert!(
        policy.contains("connect-src 'self' https://localhost:7444 http://localhost:7444;"),
        "{policy}"
    );
    assert!(policy.contains("frame-ancestors 'none'") && !policy.contains("unsafe"));
    for (name, value) in [
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("referrer-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(page.header(name), value);
    }
    assert!(
        page.header("permissions-policy")
            .contains("loopback-network=(self)")
    );
    assert!(!page.body.contains("style=\"") && !page.body.contains("<style"));
    for line in page.headers.get_all("set-cookie") {
        let line = line.to_str().unwrap();
        assert!(line.starts_with("__Host-"), "{line}");
        for word in ["; Path=/", "; Secure", "; HttpOnly", "; SameSite="] {
            assert!(line.contains(word), "{line}");
        }
    }

    // Assets are named by their content and kept; everything on a page comes from here.
    let mut assets = 0;
    for part in page
        .body
        .split(['"', '\''])
        .filter(|part| part.starts_with("/assets/"))
    {
        let asset = stranger.get(part).await;
        assert_eq!(asset.status, StatusCode::OK, "{part}");
        assert!(asset.header("cache-control").contains("immutable"));
        assets += 1;
    }
    assert!(assets >= 3, "{assets}");
    assert!(!page.body.contains("src=\"http") && !page.body.contains("href=\"http"));

    // Strangers are sent to the log-in, and come back to where they wanted afterwards.
    stranger
        .get("/operations?state=created")
        .await
        .goes_to("/login?next=/operations%3Fstate%3Dcreated");
    for path in ["/certificates", "/notices", "/trail", "/operators"] {
        let answer = stranger.get(path).await;
        answer.goes_to(&format!("/login?next={path}"));
    }
    let wrong = stranger.log_in("alice", "wrong horse").await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    assert!(
        wrong
            .body
            .contains("Account, operator or password is wrong.")
    );
    assert!(wrong.cookie("__Host-opcert-session").is_none());
    let next = [
        ("account", "acme"),
        ("operator", "alice"),
        ("password", PASSWORD),
        ("next", "//evil.example/"),
    ];
    stranger
        .submit("/login", "/login", &next)
        .await
        .goes_to("/");

    // Whoever knows or plants a cookie cannot make the token that goes with it.
    let mut visitor = Browser::of(&scene);
    let page = visitor.get("/login").await;
    let visit = page.cookie("__Host-opcert-visit").unwrap();
    let hash = sha256(format!("opcert-csrf\0{visit}").as_bytes());
    assert_ne!(page.csrf(), base64url(&hash));
    assert_eq!(visitor.get("/login").await.csrf(), page.csrf());

    // A form without the token, with that of another session, or from another site.
    let mut alice = Browser::logged_in(&scene, "alice").await;
    let theirs = alice.get("/").await.csrf();
    let mut bob = Browser::logged_in(&scene, "bob").await;
    for fields in [vec![], vec![("csrf", "")], vec![("csrf", theirs.as_str())]] {
        let answer = bob.post("/logout", &fields).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{fields:?}");
        assert!(answer.body.contains("csrf-refused"));
    }
    let csrf = bob.get("/").await.csrf();
    for (name, value) in [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
    ] {
        let request = Request::post("/logout")
            .header("content-type", FORM)
            .header(name, value);
        let answer = bob.send(request, encode(&[("csrf", &csrf)])).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{name}: {value}");
    }
    let request =
        Request::post("/certificates/install/code").header("content-type", "application/json");
    let answer = bob.send(request, "{}").await;
    assert_eq!(
        answer.status,
        StatusCode::FORBIDDEN,
        "a script's request without the header"
    );
    assert_eq!(bob.get("/").await.status, StatusCode::OK, "still logged in");

    // A session ends by itself, and by logging out; the old cookie is worth nothing then. Whose it was
    // is told so, also where a form came too late, and goes back to where he was.
    let over = "Your session is over. Log in again to go on.";
    let old = bob.cookies.clone();
    bob.submit("/", "/logout", &[]).await.goes_to("/login");
    let page = bob.get("/login").await.body;
    assert!(page.contains("You are logged out.") && !page.contains(over));
    bob.cookies = old;
    bob.get("/operations")
        .await
        .goes_to("/login?next=/operations");
    scene.hand.advance(Duration::from_secs(16 * 60));
    alice
        .get("/operations")
        .await
        .goes_to("/login?next=/operations");
    assert!(alice.get("/login").await.body.contains(over));
    assert!(!alice.get("/login").await.body.contains(over), "once");
    for (referer, path) in [
        (
            Some("https://127.0.0.1/certificates?q=x"),
            "/login?next=/certificates%3Fq%3Dx",
        ),
        (Some("https://evil.example/certificates"), "/login?next=/"),
        (Some("https://127.0.0.1.evil.example/"), "/login?next=/"),
        (None, "/login?next=/"),
    ] {
        let mut request = Request::post("/operations/new").header("content-type", FORM);
        if let Some(referer) = referer {
            request = request.header("referer", referer);
        }
        alice.send(request, "").await.goes_to(path);
        assert!(alice.get("/login").await.body.contains(over));
    }
    stranger
        .get("/requests/x")
        .await
        .goes_to("/login?next=/requests/x");
    stranger
        .get("/requests")
        .await
        .goes_to("/login/representative?next=/requests");
    let page = stranger.get("/login?next=/requests/x").await.body;
    assert!(page.contains("href=\"/login/representative?next=/requests/x\""));

    // People get pages, programs problems.
    let nowhere = stranger.get("/nowhere").await;
    assert_eq!(nowhere.status, StatusCode::NOT_FOUND);
    assert!(nowhere.body.contains("There is no such page."));
    let method = stranger.get("/logout").await;
    assert_eq!(method.status, StatusCode::METHOD_NOT_ALLOWED);
    assert!(method.body.contains("The page cannot be used that way."));
    let target = &scene.target;
    let mut client = Client::connect(target, ClientLimits::default())
        .await
        .unwrap();
    let request = Request::get("/nowhere").body(Bytes::new()).unwrap();
    let answer = client.send(request).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_speak_the_visitors_language_and_know_his_role() {
    let scene = portal().await;

    // Accept-Language first; a choice outlasts it.
    let mut visitor = Browser::of(&scene);
    visitor.language = "zh-CN,zh;q=0.9,en;q=0.8";
    let page = visitor.get("/login").await;
    assert!(page.body.contains("<html lang=\"zh-Hans\">") && page.body.contains("登录商户平台"));
    let choice = [("to", "en"), ("back", "/login")];
    visitor
        .submit("/login", "/language", &choice)
        .await
        .goes_to("/login");
    assert!(
        visitor
            .get("/login")
            .await
            .body
            .contains("<html lang=\"en\">")
    );
    let elsewhere = [("to", "zh"), ("back", "https://evil.example/")];
    visitor
        .submit("/login", "/language", &elsewhere)
        .await
        .goes_to("/");
    // What a form is answered with cannot be had again: from there it is back to the form.
    let csrf = visitor.get("/login?next=/trail").await.csrf();
    let request = Request::post("/login")
        .header("content-type", FORM)
        .header("referer", "https://127.0.0.1/login?next=/trail");
    let fields = encode(&[("csrf", &csrf), ("operator", "x"), ("password", "x")]);
    let answer = visitor.send(request, fields).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    let back = "name=\"back\" value=\"/login?next=/trail\"";
    assert!(answer.body.contains(back), "{}", answer.body);

    // What each role may see.
    let mut alice = Browser::logged_in(&scene, "alice").await;
    let mut bob = Browser::logged_in(&scene, "bob").await;
    let mut carol = Browser::logged_in(&scene, "carol").await;
    for (path, alice_may, bob_may, carol_may) in [
        ("/", 200, 200, 303),
        ("/certificates", 200, 200, 403),
        ("/certificates/install", 200, 200, 403),
        ("/operations", 200, 200, 403),
        ("/operations/new", 200, 200, 403),
        ("/operators", 200, 403, 403),
        ("/installations", 200, 403, 403),
        ("/trail", 200, 403, 403),
        ("/notices", 200, 403, 200),
        ("/number", 200, 200, 403),
        ("/requests", 403, 403, 200),
    ] {
        for (browser, expected) in [
            (&mut alice, alice_may),
            (&mut bob, bob_may),
            (&mut carol, carol_may),
        ] {
            assert_eq!(browser.get(path).await.status.as_u16(), expected, "{path}");
        }
    }
    assert!(
        bob.get("/")
            .await
            .body
            .contains("You have not installed an operating certificate")
    );
    let page = bob.get("/certificates").await.body;
    assert!(page.contains("0 of 10 computers") && page.contains("0 of 20 certificates"));
    for problem in [
        "not-running",
        "untrusted",
        "denied",
        "no-client-certificate",
    ] {
        assert!(
            page.contains(&format!("data-show=\"{problem}\"")),
            "{problem}"
        );
    }

    // Bob enters a withdrawal for Alice; the amounts and the maker are as written.
    let hostile = "<script>alert(1)</script>\"'&";
    let fields = |amount: &'static str| {
        [
            ("kind", "withdrawal"),
            ("amount", amount),
            ("currency", "CNY"),
            ("payee", hostile),
            ("reference", "W-1"),
            ("operator", "alice"),
        ]
    };
    let refused = bob
        .submit("/operations/new", "/operations/new", &fields("1.005"))
        .await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert!(refused.body.contains("role=\"alert\"") && refused.body.contains("value=\"1.005\""));
    assert_eq!(refused.invalid(), ["amount"]);
    for (name, value, field) in [
        ("currency", "ZZZ", "currency"),
        ("count", "many", "count"),
        ("payee", "\u{202e}evil", "payee"),
        ("operator", "nobody", "operator"),
    ] {
        let mut fields: Vec<_> = fields("10").into_iter().collect();
        fields.retain(|(known, _)| *known != name);
        fields.push((name, value));
        let refused = bob
            .submit("/operations/new", "/operations/new", &fields)
            .await;
        assert!(refused.status.is_client_error(), "{name}");
        assert_eq!(refused.invalid(), [field], "{}", refused.body);
        assert!(
            refused.body.contains("aria-describedby=\"problem"),
            "it refers to what is said"
        );
    }
    let created = bob
        .submit("/operations/new", "/operations/new", &fields("1,000.50"))
        .await;
    let path = created.header("location").to_owned();
    for browser in [&mut alice, &mut bob] {
        let page = browser.get(&path).await.body;
        assert!(page.contains("CNY 1,000.50"), "{page}");
        assert!(!page.contains("<script>alert") && page.contains("&lt;script&gt;alert(1)"));
    }
    assert!(alice.get(&path).await.body.contains("data-approver"));
    let page = bob.get(&path).await.body;
    assert!(
        !page.contains("data-approver"),
        "the maker does not approve"
    );
    assert!(page.contains("/cancel\""));

    // A hostile search is shown as text.
    let page = alice
        .get("/certificates?q=%3Cscript%3Ealert(1)%3C%2Fscript%3E%22")
        .await
        .body;
    assert!(!page.contains("<script>alert") && page.contains("&lt;script&gt;alert(1)"));
    assert!(page.contains("No certificate matches."));

    // The one who entered it takes it back; everybody of the account sees that.
    bob.submit(&path, &format!("{path}/cancel"), &[])
        .await
        .goes_to(&path);
    let page = alice.get(&path).await.body;
    assert!(page.contains("Cancelled") && !page.contains("data-approver"));
    assert!(
        alice
            .get("/trail")
            .await
            .body
            .contains("Operation cancelled")
    );

    // A code for an installation goes out under the session, to the registered number only.
    let csrf = bob.get("/").await.csrf();
    let request = Request::builder()
        .method(Method::POST)
        .uri("/certificates/install/code")
        .header("content-type", "application/json")
        .header("x-csrf-token", csrf);
    let body = r#"{"computer": "c-1", "name": "Finance office", "token_serial": null}"#;
    let answer = bob.send(request, body).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
    assert!(answer.body.contains("+86*******0002"), "{}", answer.body);
    let text = scene.texts.try_recv().expect("a text");
    assert!(text.expose().contains("Finance office"), "{text:?}");
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_number_is_replaced_on_paper_and_papers_are_never_shown_inline() {
    let scene = portal().await;
    let mut alice = Browser::logged_in(&scene, "alice").await;
    let mut bob = Browser::logged_in(&scene, "bob").await;
    let mut carol = Browser::logged_in(&scene, "carol").await;

    // Bob asks, with the password once more.
    let ask = |password: &'static str| {
        [
            ("kind", "mobile-change"),
            ("mobile", "+8613800000099"),
            ("password", password),
        ]
    };
    let refused = bob.submit("/number", "/number", &ask("wrong horse")).await;
    assert_eq!(refused.status, StatusCode::UNAUTHORIZED);
    assert!(refused.body.contains("The login password is wrong."));
    assert!(refused.body.contains("value=\"+8613800000099\""));
    assert_eq!(refused.invalid(), ["password"]);
    let kind = [
        ("kind", "mobile-change"),
        ("mobile", "12"),
        ("password", "x"),
    ];
    let refused = bob.submit("/number", "/number", &kind).await;
    assert_eq!(refused.invalid(), ["mobile"]);
    let kind = [("kind", "computer-recovery"), ("password", "wrong horse")];
    let refused = alice.submit("/number", "/number", &kind).await;
    assert_eq!(refused.invalid(), ["recovery-password"]);
    let made = bob.submit("/number", "/number", &ask(PASSWORD)).await;
    assert_eq!(made.status, StatusCode::SEE_OTHER, "{}", made.body);
    let path = made.header("location").to_owned();
    let page = bob.get(&path).await;
    assert!(page.body.contains("Papers missing") && page.body.contains("+86*******0099"));
    let csrf = page.csrf();

    // The form comes as a file, in both formats.
    let mut forms = Vec::new();
    for format in ["pdf", "docx"] {
        let form = bob.get(&format!("/v1{path}/form/{format}")).await;
        assert_eq!(form.status, StatusCode::OK);
        assert!(form.header("content-disposition").starts_with("attachment"));
        assert!(page.body.contains(&format!("/v1{path}/form/{format}")));
        forms.push(form.bytes);
    }

    // Papers: not without the token, not what they are not; then submitted.
    let photocopy = format!("{path}/papers/photocopy");
    let document = format!("{path}/papers/document");
    let forged = bob.upload(&photocopy, "", &forms[0]).await;
    assert_eq!(forged.status, StatusCode::FORBIDDEN);
    let hostile = b"<html><script>alert(1)</script></html>";
    let refused = bob.upload(&photocopy, &csrf, hostile).await;
    assert_eq!(
        refused.status,
        StatusCode::UNPROCESSABLE_ENTITY,
        "{}",
        refused.body
    );
    assert!(refused.body.contains("The paper is refused."));
    let early = bob.submit(&path, &format!("{path}/submit"), &[]).await;
    assert_eq!(early.status, StatusCode::CONFLICT);
    bob.upload(&photocopy, &csrf, &forms[0])
        .await
        .goes_to(&path);
    bob.upload(&document, &csrf, &forms[1]).await.goes_to(&path);
    bob.submit(&path, &format!("{path}/submit"), &[])
        .await
        .goes_to(&path);

    // Carol reads the papers as files and grants; Alice, who is told, stops it in time.
    assert!(carol.get("/requests").await.body.contains(&path));
    let paper = carol.get(&format!("/v1{path}/papers/photocopy")).await;
    assert!(
        paper
            .header("content-disposition")
            .starts_with("attachment")
    );
    assert_eq!(paper.header("x-content-type-options"), "nosniff");
    let unfit = [("decision", "grant"), ("reason", "\u{202e}")];
    let refused = carol.submit(&path, &format!("{path}/decide"), &unfit).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST);
    assert_eq!(refused.invalid(), ["reason"]);
    let grant = [("decision", "grant"), ("reason", "papers are in order")];
    carol
        .submit(&path, &format!("{path}/decide"), &grant)
        .await
        .goes_to("/requests");
    assert!(bob.get(&path).await.body.contains("Takes effect at"));
    assert!(alice.get("/notices").await.body.contains("bob"));
    alice
        .submit(&path, &format!("{path}/withdraw"), &[])
        .await
        .goes_to(&path);
    assert!(bob.get(&path).await.body.contains("Withdrawn"));
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_is_set_on_its_page_and_never_shown() {
    const SECRET: &str = "a7cde1ZJB1kG2e7VfTs3jQzaWizur8Gb";
    let scene = portal().await;
    let mut bob = Browser::logged_in(&scene, "bob").await;
    for path in ["/security", "/security/api", "/security/apiv3"] {
        let answer = bob.get(path).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
    }
    assert!(!bob.get("/").await.body.contains("/security"));
    let refused = bob.submit("/", "/security/api/code", &[]).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);

    // First the code, then the secret; without a script.
    let mut alice = Browser::logged_in(&scene, "alice").await;
    let page = alice.get("/security").await;
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.body.contains("API Security") && page.body.contains("Not set"));
    assert!(page.body.contains("No computer has asked for secrets."));
    let draft = "/security/apiv3";
    assert!(alice.get(draft).await.body.contains("+86*******0001"));
    let sent = alice.submit(draft, "/security/apiv3/code", &[]).await;
    assert_eq!(sent.status, StatusCode::SEE_OTHER, "{}", sent.body);
    let form = sent.header("location").to_owned();
    let code_id = form.split_once("?code=").unwrap().1.to_owned();
    let text = scene.texts.try_recv().unwrap().expose().to_owned();
    assert!(text.contains("Change the APIv3 secret of account acme"));
    let code = text.split("opcert code ").nth(1).unwrap()[..6].to_owned();
    let page = alice.get(&form).await;
    assert!(page.body.contains(&format!("value=\"{code_id}\"")));
    assert!(page.body.contains("type=\"password\""));
    let again = alice.submit(draft, "/security/apiv3/code", &[]).await;
    assert_eq!(again.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(again.body.contains("A code was sent a moment ago."));

    // What is wrong is told; what was typed is not repeated, and the code stays good.
    let typed = |secret: &str, again: &str, password: &str| {
        [
            ("code_id", code_id.clone()),
            ("secret", secret.to_owned()),
            ("again", again.to_owned()),
            ("overlap", "3600".to_owned()),
            ("code", code.clone()),
            ("password", password.to_owned()),
        ]
    };
    for (fields, status, said, wrong) in [
        (
            typed(SECRET, &SECRET.to_lowercase(), PASSWORD),
            StatusCode::BAD_REQUEST,
            "The two fields differ.",
            &["secret", "again"][..],
        ),
        (
            typed(&SECRET[1..], &SECRET[1..], PASSWORD),
            StatusCode::UNPROCESSABLE_ENTITY,
            "The new secret is not allowed.",
            &["secret"],
        ),
        (
            typed(SECRET, SECRET, "wrong horse"),
            StatusCode::UNAUTHORIZED,
            "The login password is wrong.",
            &["password"],
        ),
    ] {
        let fields: Vec<_> = fields
            .iter()
            .map(|(name, text)| (*name, text.as_str()))
            .collect();
        let answer = alice.submit(&form, draft, &fields).await;
        assert_eq!(answer.status, status, "{}", answer.body);
        assert!(answer.body.contains(said), "{}", answer.body);
        assert_eq!(answer.invalid(), wrong);
        assert!(answer.body.contains(&format!("value=\"{code_id}\"")));
        assert!(!answer.body.contains(&SECRET[1..]) && !answer.body.contains("horse"));
    }
    let good = typed(SECRET, SECRET, PASSWORD);
    let good: Vec<_> = good
        .iter()
        .map(|(name, text)| (*name, text.as_str()))
        .collect();
    let forged = alice.post(draft, &good).await;
    assert_eq!(forged.status, StatusCode::FORBIDDEN);
    alice.submit(&form, draft, &good).await.goes_to("/security");
    let page = alice.get("/security").await;
    assert!(page.body.contains("The secret is set."), "{}", page.body);
    assert!(page.body.contains("Set by") && !page.body.contains(SECRET));
    // A code is good for one.
    let spent = alice.submit(&form, draft, &good).await;
    assert!(
        spent.body.contains("The SMS code is used up."),
        "{}",
        spent.body
    );
    assert!(spent.body.contains("/security/apiv3/code"));
    for path in ["/security", "/notices", "/trail", draft] {
        let page = alice.get(path).await;
        assert_eq!(page.status, StatusCode::OK, "{path}");
        assert!(!page.body.contains(SECRET), "{path}");
    }
    alice.language = "zh-CN";
    let page = alice.get("/security").await;
    assert!(page.body.contains("API 安全") && page.body.contains("已设置"));
    let missing = alice.get("/security/computers/none").await;
    assert_eq!(missing.status, StatusCode::NOT_FOUND);
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_database_the_portal_says_so_on_a_page() {
    let scene = portal().await;
    let mut alice = Browser::logged_in(&scene, "alice").await;
    let csrf = alice.get("/").await.csrf();
    let config = opcert::account::config::Config::load(&scene.made.config).unwrap();
    let url = config.database().unwrap();
    tokio::task::spawn_blocking(move || {
        super::upkeep::sql(&url, "ALTER TABLE sessions RENAME TO away;");
    })
    .await
    .unwrap();
    let page = alice.get("/operations").await;
    assert!(page.status.is_server_error());
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(page.body.contains("<html lang=\"en\">"), "{}", page.body);
    assert!(!page.header("content-security-policy").is_empty());
    let request = Request::post("/certificates/install/code")
        .header("content-type", "application/json")
        .header("x-csrf-token", csrf);
    let answer = alice.send(request, "{}").await;
    assert!(answer.status.is_server_error());
    let answer: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert!(answer["action"].is_string() && answer["request_id"].is_string());
    scene.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_approval_of_two_is_not_called_the_approval_of_the_operation() {
    let scene = portal().await;
    let mut create = scene.made.command();
    create
        .args(["operator", "create", "dave", "--account", "acme"])
        .args(["--mobile", "+8613800000004", "--password-file", "-"]);
    succeed_with(&mut create, PASSWORD);
    let more = ["--currency", "CNY", "--from", "0"];
    succeed(&mut scene.made.approval_rule("withdrawal", "2", &more));
    let mut dave = Browser::logged_in(&scene, "dave").await;
    let fields = [
        ("kind", "withdrawal"),
        ("amount", "10"),
        ("currency", "CNY"),
        ("payee", "Acme Ltd"),
        ("reference", "W-2"),
        ("operator", "alice"),
    ];
    let created = dave
        .submit("/operations/new", "/operations/new", &fields)
        .await;
    assert_eq!(created.status, StatusCode::SEE_OTHER, "{}", created.body);
    let path = created.header("location").to_owned();
    for (who, computer, said) in [
        ("alice", "c-1", "Your approval is taken."),
        ("bob", "c-2", "The operation is approved."),
    ] {
        let installed = scene.installed(who, computer).await;
        let mut browser = Browser::logged_in(&scene, who).await;
        let csrf = browser.get(&path).await.csrf();
        let script = |what: &str| {
            Request::post(format!("{path}/{what}"))
                .header("content-type", "application/json")
                .header("x-csrf-token", csrf.as_str())
        };
        let made = browser.send(script("challenge"), "{}").await;
        let made: serde_json::Value = serde_json::from_str(&made.body).unwrap();
        let approval = scene.approval(&installed, made["challenge"].as_str().unwrap());
        let body = serde_json::json!({ "approval": approval }).to_string();
        let taken = browser.send(script("approval"), body).await;
        assert_eq!(taken.status, StatusCode::OK, "{}", taken.body);
        let page = browser.get(&path).await.body;
        assert!(page.contains(said), "{page}");
    }
    scene.end().await;
}
