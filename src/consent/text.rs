//! What the window says.
//!
//! The first line is ours alone, each label begins a line, and a line on which a value goes on
//! begins with a mark: nothing a value holds can look like a line of ours. An indent would not do,
//! pinentry-curses drops it.

use std::borrow::Cow;

use super::{AskedBy, ConsentError, OnToken, PinProblem, Prompt, TokenPin, assuan, process};
use crate::statement::Language;

/// Columns of the text; a terminal of 80 has room for it and a frame.
const COLUMNS: usize = 50;

/// Lines of the text; a terminal of 24 has room for it and the buttons.
const LINES: usize = 20;

/// Begins a line on which a value goes on.
const GOES_ON: &str = "| ";

/// A line is broken at a space if that is among its last columns, this many.
const RAGGED: usize = 15;

/// The text of a window, as the Assuan commands that set it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    commands: Vec<Vec<u8>>,
}

impl Question {
    /// Lays out a prompt with two buttons. One that does not fit is [`ConsentError::Unavailable`].
    pub fn confirm(prompt: &Prompt) -> Result<Self, ConsentError> {
        Self::new(prompt, &[])
    }

    /// Lays out a prompt that asks for a PIN.
    pub fn pin(
        prompt: &Prompt,
        label: &str,
        again: Option<PinProblem>,
    ) -> Result<Self, ConsentError> {
        let words = Words::of(prompt.language);
        let field = format!("{} {}:", words.pin_of, clean(label));
        let mut more = vec![("SETPROMPT", field.as_str())];
        match again {
            None => {}
            Some(PinProblem::Wrong) => more.push(("SETERROR", words.pin_wrong)),
            Some(PinProblem::Length) => more.push(("SETERROR", words.pin_length)),
        }
        Self::new(prompt, &more)
    }

    /// Lays out the question for the PIN of a token.
    pub fn token_pin(prompt: &Prompt, asked: &TokenPin) -> Result<Self, ConsentError> {
        let words = Words::of(prompt.language);
        let field = format!("{} {}:", words.pin_of, clean(&asked.label));
        Self::token(prompt, asked, words.token_needs, &[("SETPROMPT", &field)])
    }

    /// Lays out what is said before a PIN is typed on the token itself.
    pub fn token_by_hand(prompt: &Prompt, asked: &TokenPin) -> Result<Self, ConsentError> {
        let words = Words::of(prompt.language);
        Self::token(prompt, asked, words.token_by_hand, &[])
    }

    fn token(
        prompt: &Prompt,
        asked: &TokenPin,
        first: &str,
        more: &[(&str, &str)],
    ) -> Result<Self, ConsentError> {
        let words = Words::of(prompt.language);
        let title = format!("opcert: {}", clean(&prompt.title));
        let text = lines(prompt, first, words).ok_or_else(too_long)?;
        let before = asked.before.as_deref().map(clean);
        let error = before.as_deref().map(|before| ("SETERROR", before));
        let commands = [
            ("SETTITLE", title.as_str()),
            ("SETDESC", &text),
            ("SETOK", words.unlock),
            ("SETCANCEL", words.cancel),
        ]
        .iter()
        .chain(more)
        .chain(&error)
        .map(|(name, argument)| assuan::command(name, argument))
        .collect::<Option<_>>()
        .ok_or_else(too_long)?;
        Ok(Self { commands })
    }

    fn new(prompt: &Prompt, more: &[(&str, &str)]) -> Result<Self, ConsentError> {
        let words = Words::of(prompt.language);
        let title = format!("opcert: {}", clean(&prompt.title));
        let description = description(prompt, words).ok_or_else(too_long)?;
        let commands = [
            ("SETTITLE", title.as_str()),
            ("SETDESC", &description),
            ("SETOK", words.approve),
            ("SETCANCEL", words.refuse),
        ]
        .iter()
        .chain(more)
        .map(|(name, argument)| assuan::command(name, argument))
        .collect::<Option<_>>()
        .ok_or_else(too_long)?;
        Ok(Self { commands })
    }

    /// The commands, in order.
    pub fn commands(&self) -> impl Iterator<Item = &[u8]> {
        self.commands.iter().map(Vec::as_slice)
    }
}

fn too_long() -> ConsentError {
    ConsentError::Unavailable {
        reason: "the operation's texts do not fit the window, and nothing is signed that was not \
                 shown in full"
            .into(),
        action: Some("Create the operation again with a shorter payee, reference or memo."),
    }
}

/// What the window for a token's PIN says.
pub(super) fn token_pin(asked: &TokenPin, language: Language) -> Prompt {
    let words = Words::of(language);
    Prompt {
        title: format!("{} {}", words.pin_of, asked.label),
        asked_by: AskedBy::Itself,
        lines: vec![
            (words.token.to_owned(), asked.label.clone()),
            (words.serial.to_owned(), asked.serial.clone()),
        ],
        list: Vec::new(),
        on_token: None,
        language,
    }
}

/// What is said around the values, in the window and in notices.
pub(super) struct Words {
    /// What a notice says.
    pub waits: &'static str,
    token_needs: &'static str,
    token_by_hand: &'static str,
    token: &'static str,
    serial: &'static str,
    unlock: &'static str,
    cancel: &'static str,
    question: &'static str,
    asked_by: &'static str,
    user: &'static str,
    itself: &'static str,
    page: &'static str,
    program: &'static str,
    approve: &'static str,
    refuse: &'static str,
    more: (&'static str, &'static str),
    pin_of: &'static str,
    pin_wrong: &'static str,
    pin_length: &'static str,
    touch: &'static str,
    pin_on_token: &'static str,
}

impl Words {
    pub(super) fn of(language: Language) -> &'static Self {
        match language {
            Language::English => &Self {
                waits: "A question waits for your answer",
                token_needs: "The token needs its PIN; it is tried once.",
                token_by_hand: "The token needs its PIN. Press Unlock, then enter it on the token.",
                token: "Token",
                serial: "Serial number",
                unlock: "Unlock",
                cancel: "Cancel",
                question: "Do you approve this operation?",
                asked_by: "Asked by",
                user: "local user",
                itself: "opcert itself",
                page: "Page",
                program: "Program",
                approve: "Approve",
                refuse: "Refuse",
                more: ("and ", " more"),
                pin_of: "PIN of",
                pin_wrong: "The token refused this PIN.",
                pin_length: "No PIN has this length; it was not tried.",
                touch: "After you approve, touch the token",
                pin_on_token: "After you approve, enter the PIN on the token",
            },
            Language::Chinese => &Self {
                waits: "有操作等待您确认",
                token_needs: "令牌需要 PIN 码；只尝试一次。",
                token_by_hand: "令牌需要 PIN 码。请先点击“解锁”，再在令牌上输入。",
                token: "令牌",
                serial: "序列号",
                unlock: "解锁",
                cancel: "取消",
                question: "您是否授权此操作？",
                asked_by: "请求方",
                user: "本机用户",
                itself: "opcert 自身",
                page: "网页",
                program: "程序",
                approve: "授权",
                refuse: "拒绝",
                more: ("另有 ", " 项"),
                pin_of: "PIN 码，令牌",
                pin_wrong: "令牌拒绝了此 PIN 码。",
                pin_length: "PIN 码长度不符，未尝试。",
                touch: "授权后，请触碰令牌",
                pin_on_token: "授权后，请在令牌上输入 PIN 码",
            },
        }
    }

    /// Who asks, in a few words.
    pub(super) fn asker<'a>(&self, asked_by: &'a AskedBy) -> Cow<'a, str> {
        match asked_by {
            AskedBy::Client { name, .. } => Cow::Borrowed(name),
            AskedBy::User { uid, .. } => Cow::Owned(format!("{} {uid}", self.user)),
            AskedBy::Itself => Cow::Borrowed(self.itself),
        }
    }
}

/// The text of the window; `None` where what has to be shown does not fit.
fn description(prompt: &Prompt, words: &Words) -> Option<String> {
    lines(prompt, words.question, words)
}

/// The same below another first line.
fn lines(prompt: &Prompt, first: &str, words: &Words) -> Option<String> {
    let mut text = String::from(first);
    text.push('\n');
    for (label, value) in &prompt.lines {
        push_line(&mut text, label, value);
    }
    let mut below = String::new();
    push_line(&mut below, words.asked_by, &words.asker(&prompt.asked_by));
    match &prompt.asked_by {
        AskedBy::Client {
            page: Some(page), ..
        } => push_line(&mut below, words.page, page),
        AskedBy::User { pid: Some(pid), .. } => {
            push_line(
                &mut below,
                words.program,
                &process::chain(*pid, prompt.language),
            );
        }
        AskedBy::Client { page: None, .. } | AskedBy::User { pid: None, .. } | AskedBy::Itself => {}
    }
    if let Some(on_token) = &prompt.on_token {
        let (sentence, label) = match on_token {
            OnToken::Touch { label } => (words.touch, label),
            OnToken::Pin { label } => (words.pin_on_token, label),
        };
        below.push('\n');
        push_line(&mut below, sentence, label);
    }
    // `below` begins with a line end.
    let taken = text.lines().count() + below.lines().count() - 1;
    let room = LINES.checked_sub(taken)?;
    push_list(&mut text, &prompt.list, room, words)?;
    text.push_str(&below);
    Some(text)
}

/// Appends as many entries as `room` has lines for, one a line and numbered, then how many more
/// there are. At least one has to fit.
fn push_list(text: &mut String, list: &[String], room: usize, words: &Words) -> Option<()> {
    let mut shown = 0;
    let mut used = 0;
    let mut entries = String::new();
    for (index, entry) in list.iter().enumerate() {
        let mut lines = String::new();
        push_numbered(&mut lines, index + 1, entry);
        let more = usize::from(index + 1 < list.len());
        let count = lines.lines().count() - 1;
        if used + count + more > room {
            break;
        }
        entries.push_str(&lines);
        used += count;
        shown += 1;
    }
    if shown == 0 && !list.is_empty() {
        return None;
    }
    text.push_str(&entries);
    if shown < list.len() {
        let (before, after) = words.more;
        text.push_str(&format!("\n{before}{}{after}", list.len() - shown));
    }
    Some(())
}

/// Appends `label: value`, wrapped at [`COLUMNS`].
fn push_line(text: &mut String, label: &str, value: &str) {
    push_wrapped(text, format!("{}: ", clean(label)), value);
}

fn push_numbered(text: &mut String, number: usize, value: &str) {
    push_wrapped(text, format!("{number}. "), value);
}

fn push_wrapped(text: &mut String, mut line: String, value: &str) {
    let mut unbreakable = line.len();
    for c in clean(value).chars() {
        if columns(&line) + width(c) > COLUMNS {
            let rest = match line[unbreakable..].rfind(' ') {
                Some(space) if columns(&line[unbreakable + space + 1..]) <= RAGGED => {
                    line.split_off(unbreakable + space + 1)
                }
                _ => String::new(),
            };
            text.push('\n');
            text.push_str(&line);
            line = format!("{GOES_ON}{rest}");
            unbreakable = GOES_ON.len();
        }
        line.push(c);
    }
    text.push('\n');
    text.push_str(&line);
}

/// Statement texts hold no such characters; whatever else is shown must not either.
pub(super) fn clean(value: &str) -> String {
    let misleading = |c: char| {
        c.is_control()
            || matches!(c, '\u{061C}' | '\u{200B}'..='\u{200F}' | '\u{2028}'..='\u{202E}'
                | '\u{2060}'..='\u{206F}' | '\u{FEFF}')
    };
    value
        .chars()
        .map(|c| {
            if misleading(c) {
                char::REPLACEMENT_CHARACTER
            } else {
                c
            }
        })
        .collect()
}

fn columns(text: &str) -> usize {
    text.chars().map(width).sum()
}

/// Columns of a character on a terminal: 2 for East Asian wide ones (UAX #11).
fn width(c: char) -> usize {
    match u32::from(c) {
        0x1100..=0x115F
        | 0x2E80..=0xA4CF
        | 0xAC00..=0xD7A3
        | 0xF900..=0xFAFF
        | 0xFE30..=0xFE6F
        | 0xFF00..=0xFF60
        | 0xFFE0..=0xFFE6
        | 0x1F300..=0x1FAFF
        | 0x20000..=0x3FFFD => 2,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::statement::kinds::{Batch, Presence};
    use crate::statement::strict::Object;
    use crate::statement::text::Text;
    use crate::statement::{Facts, Kind, Payee, PayeeList, Statement};

    fn prompt(lines: &[(&str, &str)]) -> Prompt {
        Prompt {
            title: "Withdrawal".into(),
            asked_by: AskedBy::Client {
                name: "shop".into(),
                page: None,
            },
            lines: lines
                .iter()
                .map(|(label, value)| ((*label).into(), (*value).into()))
                .collect(),
            list: Vec::new(),
            on_token: None,
            language: Language::English,
        }
    }

    fn shown(prompt: &Prompt) -> String {
        description(prompt, Words::of(prompt.language)).unwrap()
    }

    #[test]
    fn the_window_shows_every_line() {
        let text = shown(&prompt(&[("Account", "acme"), ("Amount", "CNY 1,000.00")]));
        assert_eq!(
            text,
            "Do you approve this operation?\n\nAccount: acme\nAmount: CNY 1,000.00\nAsked by: shop"
        );
    }

    #[test]
    fn the_window_for_a_pin_names_the_token_and_what_it_said_before() {
        let asked = TokenPin {
            label: "pay\nToken: other".into(),
            serial: "4711".into(),
            before: Some("a PIN was refused with CKR_PIN_INCORRECT".into()),
        };
        let prompt = token_pin(&asked, Language::English);
        let question = Question::token_pin(&prompt, &asked).unwrap();
        let commands: Vec<_> = question.commands().map(String::from_utf8_lossy).collect();
        assert_eq!(
            commands,
            [
                "SETTITLE opcert: PIN of pay\u{fffd}Token: other\n",
                "SETDESC The token needs its PIN; it is tried once.%0A%0AToken: pay\u{fffd}Token: \
                 other%0ASerial number: 4711%0AAsked by: opcert itself\n",
                "SETOK Unlock\n",
                "SETCANCEL Cancel\n",
                "SETPROMPT PIN of pay\u{fffd}Token: other:\n",
                "SETERROR a PIN was refused with CKR_PIN_INCORRECT\n",
            ]
        );
    }

    #[test]
    fn no_value_can_look_like_a_line_of_ours() {
        let filler = "x".repeat(COLUMNS - "Memo: ".len());
        let text = shown(&prompt(&[("Memo", &format!("{filler}Amount: CNY 1.00"))]));
        assert!(text.contains("\n| Amount: CNY 1.00"), "{text}");
        let text = shown(&prompt(&[("Memo", "a\nAmount: 1\u{202e}")]));
        assert!(
            text.contains("\nMemo: a\u{fffd}Amount: 1\u{fffd}\n"),
            "{text}"
        );
    }

    #[test]
    fn a_line_is_broken_at_a_space_near_its_end_and_loses_nothing() {
        let memo = "For the order 4711 of 2 January, and something more to wrap";
        let text = shown(&prompt(&[("Memo", memo)]));
        let wrapped = "Memo: For the order 4711 of 2 January, and \n| something more to wrap";
        assert!(text.contains(wrapped), "{text}");
        let (short, long) = ("x ", "y".repeat(60));
        let text = shown(&prompt(&[("Memo", &format!("{short}{long}"))]));
        assert!(text.contains("\nMemo: x yyy"), "{text}");
    }

    #[test]
    fn chinese_is_wrapped_by_columns() {
        let text = shown(&prompt(&[("备注", &"汉".repeat(40))]));
        let widths: Vec<usize> = text.lines().map(columns).collect();
        assert!(widths.iter().all(|width| *width <= COLUMNS), "{widths:?}");
        assert_eq!(text.matches('汉').count(), 40);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let long = "汉".repeat(120);
        let refused = Question::confirm(&prompt(&[("A", &long), ("B", &long), ("C", &long)]));
        assert!(matches!(refused, Err(ConsentError::Unavailable { .. })));
        let many: Vec<_> = (0..20).map(|_| ("A", "b")).collect();
        assert!(Question::confirm(&prompt(&many)).is_err());
        assert!(Question::confirm(&prompt(&[("A", &long), ("B", &long)])).is_ok());
    }

    #[test]
    fn a_list_is_shown_as_far_as_there_is_room() {
        let mut batch = prompt(&[("Amount", "CNY 1,000.00"), ("Count", "1000")]);
        batch.list = (1..=1000).map(|n| format!("payee {n}  CNY 1.00")).collect();
        let text = shown(&batch);
        assert!(
            text.contains("\n1. payee 1  CNY 1.00\n2. payee 2"),
            "{text}"
        );
        assert!(text.contains("\nand 986 more\nAsked by: shop"), "{text}");
        assert_eq!(text.lines().count(), LINES);
        batch.list.truncate(3);
        assert!(shown(&batch).contains("\n3. payee 3  CNY 1.00\nAsked by: shop"));
        batch.list = vec!["汉".repeat(120); 2];
        let text = shown(&batch);
        assert!(
            text.contains("\n1. 汉") && text.contains("\n2. 汉"),
            "{text}"
        );
        let many: Vec<_> = (0..17).map(|_| ("A", "b")).collect();
        let mut full = prompt(&many);
        full.list = vec!["x".into(), "y".into()];
        assert_eq!(description(&full, Words::of(Language::English)), None);
    }

    #[test]
    fn the_window_says_who_asks_and_what_to_do_on_the_token() {
        let mut page = prompt(&[("Amount", "CNY 1.00")]);
        page.asked_by = AskedBy::Client {
            name: "browser".into(),
            page: Some("https://pay.example".into()),
        };
        page.on_token = Some(OnToken::Touch {
            label: "demo\nAmount: 1".into(),
        });
        let text = shown(&page);
        assert!(
            text.ends_with(
                "\nAsked by: browser\nPage: https://pay.example\n\nAfter you approve, touch the \
                 token: demo\u{fffd}Amount: 1"
            ),
            "{text}"
        );
        let own = i32::try_from(std::process::id()).unwrap();
        let user = Prompt {
            asked_by: AskedBy::User {
                uid: 1000,
                pid: Some(own),
            },
            language: Language::Chinese,
            ..page
        };
        let text = shown(&user);
        assert!(text.contains("\n请求方: 本机用户 1000\n程序: "), "{text}");
        assert!(!text.contains("started"), "{text}");
    }

    #[test]
    fn a_pin_is_asked_for_by_the_name_of_its_token() {
        let pin = |again| {
            let question = Question::pin(&prompt(&[]), "demo", again).unwrap();
            let lines: Vec<String> = question
                .commands()
                .map(|line| String::from_utf8_lossy(line).into_owned())
                .collect();
            lines.concat()
        };
        assert!(pin(None).ends_with("SETPROMPT PIN of demo:\n"));
        assert!(pin(Some(PinProblem::Wrong)).ends_with("SETERROR The token refused this PIN.\n"));
    }

    const LANGUAGES: [Language; 2] = [Language::English, Language::Chinese];

    /// The whole window, in one language; `None` where it does not fit, and nothing is signed.
    fn window(statement: &Statement, language: Language) -> Option<String> {
        let asked_by = AskedBy::Client {
            name: "shop".into(),
            page: None,
        };
        let prompt = Prompt::of_statement(statement, None, asked_by, language);
        description(&prompt, Words::of(language)).map(|text| format!("{}\n{text}", prompt.title))
    }

    fn parse(json: &serde_json::Value) -> Option<Statement> {
        let object = Object::parse(json.to_string().as_bytes()).ok()?;
        Statement::from_object(object).ok()
    }

    /// Texts of which some are alike: short ones, long ones that wrap, what looks like lines of the
    /// window, Chinese.
    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            "[a-c1]{1,2}",
            "[ -~]{1,60}",
            "(Amount|Memo|Reference|To): [a-c]{1,2}",
            "[xy ]{0,80}z",
            "[\u{4e00}-\u{4e20}]{1,60}",
        ]
        .prop_filter("a text", |text| text.parse::<Text>().is_ok())
    }

    fn id() -> impl Strategy<Value = String> {
        "[ab]{1,2}"
    }

    prop_compose! {
        fn statement()(
            kind in 0..Kind::all().count(),
            (account, operator) in (id(), id()),
            minor in prop_oneof![1..20_i64, 1..100_000_000_i64],
            currency in prop_oneof![Just("CNY"), Just("USD"), Just("JPY"), Just("KWD")],
            (payee, reference, memo) in (text(), text(), text()),
            count in 1..1_000_i64,
            optional in any::<[bool; 6]>(),
        ) -> Statement {
            let kind = Kind::all().nth(kind).unwrap();
            let has = |presence, optional| match presence {
                Presence::Required => true,
                Presence::Optional => optional,
                Presence::Forbidden => false,
            };
            let mut facts = Facts {
                amount: has(kind.amount(), optional[0]).then(|| (minor, currency.to_owned())),
                payee: has(kind.payee(), optional[1]).then(|| payee.clone()),
                payees: None,
                count: has(kind.count(), optional[2]).then_some(count),
                reference: has(kind.reference(), optional[3]).then_some(reference),
                memo: has(kind.memo(), optional[4]).then_some(memo),
            };
            if kind.batch() == Batch::Allowed && optional[5] {
                let list = PayeeList::new(&[Payee { payee, amount: minor }], currency).unwrap();
                facts.payee = None;
                facts.payees = Some(list.digest().to_string());
                facts.count = Some(1);
                facts.amount = Some((minor, currency.to_owned()));
            }
            Statement::new(kind, account.parse().unwrap(), operator.parse().unwrap(), facts)
                .unwrap()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// The window is a pure function of what is signed: whoever parses that gets the text the
        /// person saw, in either language.
        #[test]
        fn what_is_signed_is_what_was_shown(statement in statement()) {
            let signed = statement.to_json();
            let read = parse(&signed).unwrap();
            prop_assert_eq!(&read, &statement);
            prop_assert_eq!(read.to_json().to_string(), signed.to_string());
            for language in LANGUAGES {
                prop_assert_eq!(window(&read, language), window(&statement, language));
            }
        }

        /// Two statements that differ in anything are shown differently, in either language.
        #[test]
        fn no_two_statements_are_shown_alike(one in statement(), other in statement()) {
            prop_assume!(one != other);
            for language in LANGUAGES {
                let (one, other) = (window(&one, language), window(&other, language));
                prop_assert!(one.is_none() || one != other, "{:?}", one);
            }
        }

        /// One field that is changed, left out, added or renamed is refused, or shows.
        #[test]
        fn a_change_of_one_field_shows_or_is_refused(
            statement in statement(),
            other in statement(),
            field in any::<proptest::sample::Index>(),
            to in any::<proptest::sample::Index>(),
            how in 0..5,
        ) {
            const FIELDS: [&str; 10] = [
                "kind", "account", "operator", "amount", "currency", "payee", "payees", "count",
                "reference", "memo",
            ];
            let mut changed = statement.to_json();
            let map = changed.as_object_mut().unwrap();
            let names: Vec<String> = map.keys().cloned().collect();
            let name = &names[field.index(names.len())];
            let new = FIELDS[to.index(FIELDS.len())];
            match how {
                0 => drop(map.shift_remove(name)),
                1 => {
                    if let Some(value) = other.to_json().get(name) {
                        map.insert(name.clone(), value.clone());
                    }
                }
                2 => {
                    if let Some(value) = map.shift_remove(name) {
                        map.insert(new.to_owned(), value);
                    }
                }
                3 => {
                    if let Some(value) = other.to_json().get(new) {
                        map.insert(new.to_owned(), value.clone());
                    }
                }
                _ => {
                    let value = match &map[name] {
                        serde_json::Value::String(text) => format!("{text}a").into(),
                        number => (number.as_i64().unwrap() + 1).into(),
                    };
                    map.insert(name.clone(), value);
                }
            }
            if let Some(read) = parse(&changed).filter(|read| *read != statement) {
                for language in LANGUAGES {
                    let (before, after) = (window(&statement, language), window(&read, language));
                    prop_assert!(before.is_none() || before != after, "{}", changed);
                }
            }
        }
    }
}
