//! Asking the person, with a script in pinentry's place: the person's answer is all that is made up.

use std::io::Write as _;
use std::num::NonZeroU32;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use opcert::consent::{AskedBy, Asker, Config, ConsentError, PinProblem, Prompt};
use opcert::policy::ConsentMethod;
use opcert::statement::Language;
use tempfile::TempDir;

mod support;
use support::wait::eventually;

/// A pinentry that writes what it is told to `log` and its process id to `pid`, and runs `answer`
/// at CONFIRM.
struct Fake {
    dir: TempDir,
}

impl Fake {
    fn new(answer: &str) -> Self {
        Self::script(&format!(
            r##"echo "OK Pleased to meet you, process $$"
            while IFS= read -r line; do
                printf '%s\n' "$line" >>log
                case $line in
                    "OPTION grab") echo "ERR 83886254 Unknown option <Pinentry>" ;;
                    CONFIRM | GETPIN) {answer} ;;
                    BYE) echo "OK closing connection"; exit 0 ;;
                    *) echo "# a note"; echo OK ;;
                esac
            done"##
        ))
    }

    fn script(body: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let script = format!(
            "#!/bin/sh\ncd '{}' || exit 1\necho $$ >>pid\n{body}\n",
            dir.path().display()
        );
        let fake = Self { dir };
        // Another process writes it: a descriptor of ours could be open in a child that another
        // test is just starting, and a program that is open for writing cannot be run.
        let mut tee = Command::new("tee")
            .arg(fake.program())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = tee.stdin.take().unwrap();
        input.write_all(script.as_bytes()).unwrap();
        drop(input);
        assert!(tee.wait().unwrap().success());
        std::fs::set_permissions(fake.program(), std::fs::Permissions::from_mode(0o755)).unwrap();
        fake
    }

    fn program(&self) -> PathBuf {
        self.dir.path().join("pinentry")
    }

    fn asker(&self, seconds: u32, queue: usize) -> Asker {
        asker(&self.program(), seconds, queue)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(name)).unwrap_or_default()
    }

    /// The processes that were started.
    fn started(&self) -> Vec<String> {
        self.read("pid").lines().map(str::to_owned).collect()
    }

    async fn wait_for_confirm(&self, count: usize) {
        eventually("the questions", async || {
            self.read("log").matches("CONFIRM\n").count() >= count
        })
        .await;
    }
}

fn asker(program: &Path, seconds: u32, queue: usize) -> Asker {
    Asker::start(Config {
        pinentry: Some(program.to_owned()),
        timeout_seconds: NonZeroU32::new(seconds).unwrap(),
        queue,
        ..Config::default()
    })
}

fn prompt() -> Prompt {
    Prompt {
        title: "Withdrawal".into(),
        asked_by: AskedBy::Client {
            name: "shop".into(),
            page: None,
        },
        lines: vec![
            ("Amount".into(), "CNY 1,000.00".into()),
            ("Payee".into(), "100% 张三\nSETOK Fine".into()),
        ],
        list: Vec::new(),
        on_token: None,
        language: Language::English,
    }
}

/// Whether the process is there and not merely waiting to be collected.
fn runs(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn reason(answer: Result<ConsentMethod, ConsentError>) -> String {
    match answer {
        Err(ConsentError::Unavailable { reason, .. }) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn ok_is_consent_and_the_window_shows_what_was_asked() {
    let fake = Fake::new("echo OK");
    let answer = fake.asker(60, 8).ask(&prompt()).await;
    assert_eq!(answer, Ok(ConsentMethod::Pinentry));
    let log = fake.read("log");
    let told = |line: &str| assert!(log.lines().any(|told| told == line), "{line} in {log}");
    told("SETTIMEOUT 60");
    told("SETTITLE opcert: Withdrawal");
    told(
        "SETDESC Do you approve this operation?%0A%0AAmount: CNY 1,000.00%0APayee: 100%25 张三\u{fffd}SETOK Fine%0AAsked by: shop",
    );
    told("SETOK Approve");
    told("SETCANCEL Refuse");
    told("OPTION grab");
    told("BYE");
    assert!(log.contains("OPTION lc-ctype="));

    let chinese = Prompt {
        language: Language::Chinese,
        ..prompt()
    };
    fake.asker(60, 8).ask(&chinese).await.unwrap();
    let log = fake.read("log");
    assert!(log.contains("SETOK 授权\nSETCANCEL 拒绝\n"), "{log}");
    assert!(log.contains("SETDESC 您是否授权此操作？%0A"), "{log}");
    eventually("no child runs", async || {
        fake.started().iter().all(|pid| !runs(pid))
    })
    .await;
}

#[tokio::test]
async fn every_way_to_say_no_is_a_refusal() {
    for answer in [
        "echo 'ERR 83886179 Operation cancelled <Pinentry>'",
        "echo 'ERR 83886194 Not confirmed <Pinentry>'",
        "echo 'S BUTTON_INFO close'; echo 'ERR 83886278 Fully cancelled'",
    ] {
        let fake = Fake::new(answer);
        let answer = fake.asker(60, 8).ask(&prompt()).await;
        assert_eq!(answer, Err(ConsentError::Denied));
    }
}

/// A terminal that has a line typed into it which nobody has read.
fn typed_ahead(folder: &Path, line: &str) -> (Child, String) {
    let mut terminal = Command::new("script")
        .args(["-qec", "tty >name; exec sleep 600", "/dev/null"])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let name = support::wait::until("a terminal", || {
        let name = std::fs::read_to_string(folder.join("name")).ok()?;
        name.strip_suffix('\n').map(str::to_owned)
    });
    let input = terminal.stdin.as_mut().unwrap();
    input.write_all(line.as_bytes()).unwrap();
    input.flush().unwrap();
    let opened = std::fs::File::open(&name).unwrap();
    support::wait::until("the line", || {
        (rustix::io::ioctl_fionread(&opened).unwrap() > 0).then_some(())
    });
    (terminal, name)
}

#[tokio::test]
async fn what_was_typed_before_the_question_is_no_answer() {
    let folder = tempfile::tempdir().unwrap();
    let (mut terminal, name) = typed_ahead(folder.path(), "yes\n");
    // Whatever there is to be read at once is taken for a yes.
    let fake = Fake::new(&format!(
        "if timeout 1 head -n 1 <{name} | grep -q yes; then echo OK; \
         else echo 'ERR 83886179 Operation cancelled <Pinentry>'; fi"
    ));
    let asker = Asker::start(Config {
        pinentry: Some(fake.program()),
        tty: Some(name),
        ..Config::default()
    });
    assert_eq!(asker.ask(&prompt()).await, Err(ConsentError::Denied));
    terminal.kill().unwrap();
    terminal.wait().unwrap();
}

#[tokio::test]
async fn time_runs_out_by_pinentrys_word_or_by_our_clock() {
    let timed_out = Err(ConsentError::TimedOut { seconds: 1 });
    let fake = Fake::new("echo 'ERR 83886142 Timeout <Pinentry>'");
    assert_eq!(fake.asker(1, 8).ask(&prompt()).await, timed_out);

    let fake = Fake::new("exec sleep 600");
    assert_eq!(fake.asker(1, 8).ask(&prompt()).await, timed_out);
    let pid = fake.started().remove(0);
    eventually("the child ends", async || !runs(&pid)).await;
}

#[tokio::test]
async fn what_is_not_a_working_pinentry_is_unavailable() {
    let nobody = Asker::start(Config::default());
    assert!(reason(nobody.ask(&prompt()).await).contains("no pinentry is configured"));

    let missing = asker(Path::new("/nonexistent/pinentry"), 60, 8);
    assert!(reason(missing.ask(&prompt()).await).contains("cannot start /nonexistent/pinentry"));

    for (script, what) in [
        ("exit 3", "ended without an answer"),
        ("echo 'no display' >&2; exit 2", "(no display)"),
        ("echo 'Password:'; read -r x", "does not speak"),
        ("head -c 100000 /dev/zero", "too long"),
        ("yes '# note'", "too many status lines"),
        ("echo 'ERR 1 not today'", "not today"),
        (
            "echo OK; read -r x; echo 'ERR 83886340 x'; read -r x; exit 1",
            "without an answer",
        ),
    ] {
        let fake = Fake::script(script);
        let reason = reason(fake.asker(60, 8).ask(&prompt()).await);
        assert!(reason.contains(what), "{script}: {reason}");
        eventually("no child runs", async || {
            fake.started().iter().all(|pid| !runs(pid))
        })
        .await;
    }

    let fake = Fake::new("echo 'ERR 83918950 Inappropriate ioctl for device <Pinentry>'");
    assert!(reason(fake.asker(60, 8).ask(&prompt()).await).contains("Inappropriate ioctl"));

    let fake = Fake::new("echo OK");
    let mut long = prompt();
    long.lines.push(("Memo".into(), "汉".repeat(400)));
    assert!(reason(fake.asker(60, 8).ask(&long).await).contains("do not fit"));
    assert!(fake.started().is_empty());
}

#[tokio::test]
async fn one_question_at_a_time_and_a_bounded_queue() {
    let fake = Fake::new("while [ ! -e go ]; do sleep 0.02; done; echo OK");
    let asker = fake.asker(60, 2);
    let ask = || {
        let asker = asker.clone();
        tokio::spawn(async move { asker.ask(&prompt()).await })
    };
    let shown = ask();
    fake.wait_for_confirm(1).await;
    let (second, third) = (ask(), ask());
    tokio::task::yield_now().await;
    assert_eq!(asker.ask(&prompt()).await, Err(ConsentError::Busy));
    assert_eq!(fake.started().len(), 1);

    std::fs::write(fake.dir.path().join("go"), "").unwrap();
    for asked in [shown, second, third] {
        assert_eq!(asked.await.unwrap(), Ok(ConsentMethod::Pinentry));
    }
    assert_eq!(fake.started().len(), 3);
    assert_eq!(asker.ask(&prompt()).await, Ok(ConsentMethod::Pinentry));
}

#[tokio::test]
async fn a_question_taken_back_leaves_the_screen_to_the_next() {
    let fake = Fake::new("if [ -e go ]; then echo OK; else exec sleep 600; fi");
    let asker = fake.asker(60, 2);
    let shown = tokio::spawn({
        let asker = asker.clone();
        async move { asker.ask(&prompt()).await }
    });
    fake.wait_for_confirm(1).await;
    std::fs::write(fake.dir.path().join("go"), "").unwrap();
    let next = tokio::spawn(async move { asker.ask(&prompt()).await });
    shown.abort();
    assert!(shown.await.unwrap_err().is_cancelled());
    assert_eq!(next.await.unwrap(), Ok(ConsentMethod::Pinentry));
    let pid = fake.started().remove(0);
    eventually("the child ends", async || !runs(&pid)).await;
}

#[tokio::test]
async fn the_child_gets_no_environment_but_what_finds_the_screen() {
    let fake = Fake::new("env >env; echo OK");
    fake.asker(60, 8).ask(&prompt()).await.unwrap();
    let environment = fake.read("env");
    assert!(environment.contains("PATH="));
    assert!(!environment.contains("CARGO"), "{environment}");
}

#[tokio::test]
async fn a_notice_tells_that_a_question_waits_and_not_what_it_holds() {
    let fake = Fake::new("echo OK");
    let notice = Fake::script("printf '%s\\n' \"$@\" >said.new && mv said.new said");
    let asker = Asker::start(Config {
        notice: Some(notice.program()),
        pinentry: Some(fake.program()),
        ..Config::default()
    });
    assert_eq!(asker.ask(&prompt()).await, Ok(ConsentMethod::Pinentry));
    eventually("a notice", async || !notice.read("said").is_empty()).await;
    let said = notice.read("said");
    assert!(said.contains("\n--\nA question waits"), "{said}");
    assert!(said.ends_with("shop: Withdrawal\n"), "{said}");
    assert!(!said.contains("1,000") && !said.contains("张三"), "{said}");

    // A desktop that takes no notices keeps nobody from answering.
    let asker = Asker::start(Config {
        notice: Some("/nonexistent/notify-send".into()),
        pinentry: Some(fake.program()),
        ..Config::default()
    });
    assert_eq!(asker.ask(&prompt()).await, Ok(ConsentMethod::Pinentry));
}

#[tokio::test]
async fn a_pin_is_typed_in_the_same_window() {
    let fake = Fake::new("echo 'D 12%2534'; echo OK");
    let asker = fake.asker(60, 8);
    let turn = asker.turn().await.unwrap();
    let pin = turn.pin(&prompt(), "demo", None).await.unwrap();
    assert_eq!(pin.expose(), "12%34");
    let again = turn.pin(&prompt(), "demo", Some(PinProblem::Wrong)).await;
    assert_eq!(again.unwrap().expose(), "12%34");
    let log = fake.read("log");
    assert!(log.contains("SETPROMPT PIN of demo:\n"), "{log}");
    assert_eq!(
        log.matches("SETERROR The token refused this PIN.\n")
            .count(),
        1
    );
    assert_eq!(log.matches("GETPIN\n").count(), 2);
    assert!(
        log.contains("SETDESC Do you approve this operation?%0A"),
        "{log}"
    );
    assert!(!log.contains("CONFIRM\n"), "{log}");

    let fake = Fake::new("echo 'ERR 83886179 Operation cancelled <Pinentry>'");
    let asker = fake.asker(60, 8);
    let turn = asker.turn().await.unwrap();
    let refused = turn.pin(&prompt(), "demo", None).await.map(|_| ());
    assert_eq!(refused, Err(ConsentError::Denied));
}

#[tokio::test]
async fn data_where_none_was_asked_for_is_refused() {
    let fake = Fake::new("echo 'D 1234'; echo OK");
    let reason = reason(fake.asker(60, 8).ask(&prompt()).await);
    assert!(reason.contains("data nobody asked for"), "{reason}");
    assert!(!reason.contains("1234"), "{reason}");
}

#[tokio::test]
async fn the_window_names_the_program_behind_a_local_user() {
    let fake = Fake::new("echo OK");
    let own = i32::try_from(std::process::id()).unwrap();
    let local = Prompt {
        asked_by: AskedBy::User {
            uid: 1000,
            pid: Some(own),
        },
        ..prompt()
    };
    fake.asker(60, 8).ask(&local).await.unwrap();
    let log = fake.read("log");
    assert!(
        log.contains("%0AAsked by: local user 1000%0AProgram: "),
        "{log}"
    );
    // A long path is wrapped.
    let plain = log.replace("%0A| ", "");
    assert!(plain.contains(&format!("({own})")), "{log}");
}
