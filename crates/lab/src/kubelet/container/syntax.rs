//! The language of the simulated shell: a small part of POSIX sh, parsed into values.

/// How deep commands may nest.
const MAX_DEPTH: usize = 16;

/// A piece of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// As it stands.
    Text(String),
    /// `$NAME`.
    Variable(String),
    /// `$(...)`: what the commands print.
    Output(Vec<Item>),
}

/// A word after quoting was read.
pub(crate) type Word = Vec<Part>;

/// Where an output goes or an input comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Redirect {
    Input(Word),
    Output {
        stderr: bool,
        append: bool,
        to: Word,
    },
    /// `2>&1` (true) or `1>&2`.
    Join {
        stderr_to_stdout: bool,
    },
}

/// A command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Command {
    Simple {
        assignments: Vec<(String, Word)>,
        words: Vec<Word>,
        redirects: Vec<Redirect>,
    },
    /// `while`, or `until` when the condition must fail.
    Loop {
        until: bool,
        condition: Vec<Item>,
        body: Vec<Item>,
    },
    /// `for NAME in WORDS`.
    For {
        name: String,
        words: Vec<Word>,
        body: Vec<Item>,
    },
    /// `if`, with a branch for each condition.
    If {
        branches: Vec<(Vec<Item>, Vec<Item>)>,
        otherwise: Vec<Item>,
    },
}

/// When an item of a list is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    Always,
    /// Behind `&&`.
    Success,
    /// Behind `||`.
    Failure,
}

/// A pipeline in a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) when: When,
    /// `!`.
    pub(crate) negated: bool,
    pub(crate) pipeline: Vec<Command>,
}

/// What cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("syntax error: {0}")]
pub(crate) struct SyntaxError(String);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(Word),
    Operator(&'static str),
}

const OPERATORS: [&str; 12] = [
    "&&", "||", "2>&1", "1>&2", ">&2", "2>>", "2>", ">>", ">", "<", "|", ";",
];

/// Reads a script.
pub(crate) fn parse(script: &str) -> Result<Vec<Item>, SyntaxError> {
    parse_at(script, 0)
}

fn parse_at(script: &str, depth: usize) -> Result<Vec<Item>, SyntaxError> {
    if depth > MAX_DEPTH {
        return Err(SyntaxError("nested too deep".into()));
    }
    let mut parser = Parser {
        tokens: tokens(script, depth)?,
        at: 0,
        depth,
    };
    let list = parser.list(&[])?;
    match parser.peek() {
        None => Ok(list),
        Some(token) => Err(unexpected(token)),
    }
}

fn unexpected(token: &Token) -> SyntaxError {
    SyntaxError(match token {
        Token::Operator(operator) => format!("unexpected \"{operator}\""),
        Token::Word(word) => match plain(word) {
            Some(text) => format!("unexpected \"{text}\""),
            None => "unexpected word".into(),
        },
    })
}

/// A word without anything to expand.
fn plain(word: &Word) -> Option<&str> {
    match word.as_slice() {
        [] => Some(""),
        [Part::Text(text)] => Some(text),
        _ => None,
    }
}

fn tokens(script: &str, depth: usize) -> Result<Vec<Token>, SyntaxError> {
    let mut tokens = Vec::new();
    let mut rest = script;
    loop {
        rest = rest.trim_start_matches([' ', '\t', '\r']);
        let Some(first) = rest.chars().next() else {
            return Ok(tokens);
        };
        if first == '#' {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if first == '\n' {
            tokens.push(Token::Operator(";"));
            rest = &rest[1..];
        } else if let Some(operator) = OPERATORS.iter().find(|o| rest.starts_with(**o)) {
            tokens.push(Token::Operator(operator));
            rest = &rest[operator.len()..];
        } else if matches!(first, '&' | '(' | ')') {
            return Err(SyntaxError(format!("unexpected \"{first}\"")));
        } else {
            let (word, after) = word(rest, depth)?;
            tokens.push(Token::Word(word));
            rest = after;
        }
    }
}

/// A word and what follows it.
fn word(text: &str, depth: usize) -> Result<(Word, &str), SyntaxError> {
    let unterminated = || SyntaxError("unterminated quoted string".into());
    let mut parts: Word = Vec::new();
    let push = |parts: &mut Word, text: &str| match parts.last_mut() {
        Some(Part::Text(before)) => before.push_str(text),
        _ => parts.push(Part::Text(text.to_owned())),
    };
    let mut rest = text;
    let mut quoted = false;
    while let Some(c) = rest.chars().next() {
        match c {
            '"' => {
                quoted = !quoted;
                push(&mut parts, "");
                rest = &rest[1..];
            }
            '\'' if !quoted => {
                let (inside, after) = rest[1..].split_once('\'').ok_or_else(unterminated)?;
                push(&mut parts, inside);
                rest = after;
            }
            '\\' => {
                let next = rest[1..].chars().next().unwrap_or('\\');
                match next {
                    '\n' => {}
                    next if quoted && !"\"\\$`".contains(next) => {
                        push(&mut parts, &format!("\\{next}"));
                    }
                    next => push(&mut parts, next.encode_utf8(&mut [0; 4])),
                }
                rest = rest.get(1 + next.len_utf8()..).unwrap_or_default();
            }
            '$' => {
                let (part, after) = dollar(&rest[1..], depth)?;
                match part {
                    Part::Text(text) => push(&mut parts, &text),
                    part => parts.push(part),
                }
                rest = after;
            }
            ' ' | '\t' | '\r' | '\n' | ';' | '|' | '&' | '<' | '>' | '(' | ')' if !quoted => break,
            c => {
                push(&mut parts, c.encode_utf8(&mut [0; 4]));
                rest = &rest[c.len_utf8()..];
            }
        }
    }
    match quoted {
        true => Err(unterminated()),
        false => Ok((parts, rest)),
    }
}

/// What follows a dollar.
fn dollar(text: &str, depth: usize) -> Result<(Part, &str), SyntaxError> {
    if let Some(inside) = text.strip_prefix('(') {
        let mut open = 1;
        for (at, c) in inside.char_indices() {
            match c {
                '(' => open += 1,
                ')' => open -= 1,
                _ => {}
            }
            if open == 0 {
                let list = parse_at(&inside[..at], depth + 1)?;
                return Ok((Part::Output(list), &inside[at + 1..]));
            }
        }
        return Err(SyntaxError(
            "unexpected end of file (expecting \")\")".into(),
        ));
    }
    if let Some(inside) = text.strip_prefix('{') {
        let (name, after) = inside
            .split_once('}')
            .ok_or_else(|| SyntaxError("unexpected end of file (expecting \"}\")".into()))?;
        return match is_name(name) || name == "?" {
            true => Ok((Part::Variable(name.to_owned()), after)),
            false => Err(SyntaxError("bad substitution".into())),
        };
    }
    if let Some(after) = text.strip_prefix('?') {
        return Ok((Part::Variable("?".into()), after));
    }
    let length = text
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .unwrap_or(text.len());
    let (name, after) = text.split_at(length);
    match is_name(name) {
        true => Ok((Part::Variable(name.to_owned()), after)),
        false => Ok((Part::Text("$".into()), text)),
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn next(&mut self) -> Option<Token> {
        let token = self.tokens.get(self.at).cloned();
        self.at += 1;
        token
    }

    /// The reserved word that comes next.
    fn reserved(&self) -> Option<&str> {
        match self.peek() {
            Some(Token::Word(word)) => plain(word),
            _ => None,
        }
    }

    fn expect(&mut self, word: &str) -> Result<(), SyntaxError> {
        if self.reserved() == Some(word) {
            self.at += 1;
            return Ok(());
        }
        Err(match self.peek() {
            Some(token) => SyntaxError(format!("{} (expecting \"{word}\")", unexpected(token).0)),
            None => SyntaxError(format!("unexpected end of file (expecting \"{word}\")")),
        })
    }

    /// Items up to one of the words `ends`, or the end.
    fn list(&mut self, ends: &[&str]) -> Result<Vec<Item>, SyntaxError> {
        let mut items = Vec::new();
        loop {
            while self.peek() == Some(&Token::Operator(";")) {
                self.at += 1;
            }
            if self.peek().is_none() || self.reserved().is_some_and(|word| ends.contains(&word)) {
                return Ok(items);
            }
            let mut when = When::Always;
            loop {
                items.push(self.item(when)?);
                when = match self.peek() {
                    Some(Token::Operator("&&")) => When::Success,
                    Some(Token::Operator("||")) => When::Failure,
                    _ => break,
                };
                self.at += 1;
                while self.peek() == Some(&Token::Operator(";")) {
                    self.at += 1;
                }
            }
            match self.peek() {
                None | Some(Token::Operator(";")) => {}
                Some(token) => return Err(unexpected(token)),
            }
        }
    }

    fn item(&mut self, when: When) -> Result<Item, SyntaxError> {
        let negated = self.reserved() == Some("!");
        if negated {
            self.at += 1;
        }
        let mut pipeline = vec![self.command()?];
        while self.peek() == Some(&Token::Operator("|")) {
            self.at += 1;
            pipeline.push(self.command()?);
        }
        Ok(Item {
            when,
            negated,
            pipeline,
        })
    }

    fn command(&mut self) -> Result<Command, SyntaxError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(SyntaxError("nested too deep".into()));
        }
        let command = match self.reserved() {
            Some("while") => self.looped(false),
            Some("until") => self.looped(true),
            Some("for") => self.for_each(),
            Some("if") => self.branches(),
            _ => self.simple(),
        };
        self.depth -= 1;
        command
    }

    fn body(&mut self) -> Result<Vec<Item>, SyntaxError> {
        self.expect("do")?;
        let body = self.list(&["done"])?;
        self.expect("done")?;
        Ok(body)
    }

    fn looped(&mut self, until: bool) -> Result<Command, SyntaxError> {
        self.at += 1;
        let condition = self.list(&["do"])?;
        Ok(Command::Loop {
            until,
            condition,
            body: self.body()?,
        })
    }

    fn for_each(&mut self) -> Result<Command, SyntaxError> {
        self.at += 1;
        let name = self
            .reserved()
            .filter(|name| is_name(name))
            .map(str::to_owned);
        let name = name.ok_or_else(|| SyntaxError("bad for loop variable".into()))?;
        self.at += 1;
        self.expect("in")?;
        let mut words = Vec::new();
        while let Some(Token::Word(word)) = self.peek() {
            words.push(word.clone());
            self.at += 1;
        }
        while self.peek() == Some(&Token::Operator(";")) {
            self.at += 1;
        }
        Ok(Command::For {
            name,
            words,
            body: self.body()?,
        })
    }

    fn branches(&mut self) -> Result<Command, SyntaxError> {
        let mut branches = Vec::new();
        let mut otherwise = Vec::new();
        while matches!(self.reserved(), Some("if" | "elif")) {
            self.at += 1;
            let condition = self.list(&["then"])?;
            self.expect("then")?;
            branches.push((condition, self.list(&["elif", "else", "fi"])?));
        }
        if self.reserved() == Some("else") {
            self.at += 1;
            otherwise = self.list(&["fi"])?;
        }
        self.expect("fi")?;
        Ok(Command::If {
            branches,
            otherwise,
        })
    }

    fn simple(&mut self) -> Result<Command, SyntaxError> {
        let (mut assignments, mut words, mut redirects) = (Vec::new(), Vec::new(), Vec::new());
        loop {
            match self.peek() {
                Some(Token::Word(word)) => {
                    match assignment(word).filter(|_| words.is_empty()) {
                        Some(pair) => assignments.push(pair),
                        None => words.push(word.clone()),
                    }
                    self.at += 1;
                }
                Some(Token::Operator(operator)) if operator.contains(['<', '>']) => {
                    let operator = *operator;
                    self.at += 1;
                    redirects.push(self.redirect(operator)?);
                }
                _ => break,
            }
        }
        if assignments.is_empty() && words.is_empty() && redirects.is_empty() {
            return Err(match self.peek() {
                Some(token) => unexpected(token),
                None => SyntaxError("unexpected end of file".into()),
            });
        }
        Ok(Command::Simple {
            assignments,
            words,
            redirects,
        })
    }

    fn redirect(&mut self, operator: &'static str) -> Result<Redirect, SyntaxError> {
        if operator.contains('&') {
            return Ok(Redirect::Join {
                stderr_to_stdout: operator == "2>&1",
            });
        }
        let Some(Token::Word(to)) = self.next() else {
            return Err(SyntaxError("unexpected redirection".into()));
        };
        Ok(match operator {
            "<" => Redirect::Input(to),
            _ => Redirect::Output {
                stderr: operator.starts_with('2'),
                append: operator.ends_with(">>"),
                to,
            },
        })
    }
}

/// `NAME=...`.
fn assignment(word: &Word) -> Option<(String, Word)> {
    let Part::Text(first) = word.first()? else {
        return None;
    };
    let (name, value) = first.split_once('=')?;
    if !is_name(name) {
        return None;
    }
    let mut parts = vec![Part::Text(value.to_owned())];
    parts.extend_from_slice(&word[1..]);
    Some((name.to_owned(), parts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words(script: &str) -> Vec<String> {
        let items = parse(script).unwrap();
        let [item] = items.as_slice() else {
            panic!("{items:?}")
        };
        let [Command::Simple { words, .. }] = item.pipeline.as_slice() else {
            panic!("{item:?}")
        };
        words
            .iter()
            .map(|word| plain(word).unwrap().to_owned())
            .collect()
    }

    #[test]
    fn quotes_hold_words_together() {
        assert_eq!(words("echo a  b"), ["echo", "a", "b"]);
        assert_eq!(
            words(r#"echo "a  b" 'c"d' e\ f """#),
            ["echo", "a  b", "c\"d", "e f", ""]
        );
        assert_eq!(words("echo a # b"), ["echo", "a"]);
        assert_eq!(words("echo a=b $"), ["echo", "a=b", "$"]);
    }

    #[test]
    fn lists_and_pipelines() {
        let items = parse("a && b || c; d | e\nf").unwrap();
        let whens: Vec<When> = items.iter().map(|item| item.when).collect();
        use When::{Always, Failure, Success};
        assert_eq!(whens, [Always, Success, Failure, Always, Always]);
        assert_eq!(items[3].pipeline.len(), 2);
    }

    #[test]
    fn compounds() {
        for (script, expected) in [
            ("while true; do date; sleep 1; done", "Loop"),
            ("until false\ndo\ndate\ndone", "Loop"),
            ("for i in 1 2; do echo $i; done", "For"),
            ("if a; then b; elif c; then d; else e; fi", "If"),
            ("A=1 b 2>&1 >/dev/null", "Simple"),
        ] {
            let items = parse(script).unwrap();
            assert_eq!(items.len(), 1, "{script}");
            let shown = format!("{:?}", items[0].pipeline[0]);
            assert!(shown.starts_with(expected), "{shown}");
        }
    }

    #[test]
    fn what_is_not_understood_is_said() {
        for (script, why) in [
            ("echo \"a", "syntax error: unterminated quoted string"),
            ("a | ", "syntax error: unexpected end of file"),
            ("a & b", "syntax error: unexpected \"&\""),
            (
                "while a; done",
                "syntax error: unexpected end of file (expecting \"do\")",
            ),
            ("echo ${a-b}", "syntax error: bad substitution"),
        ] {
            let got = parse(script).map_err(|error| error.to_string());
            assert_eq!(got, Err(why.to_owned()), "{script}");
        }
        assert!(parse(&"$(".repeat(100)).is_err());
        assert!(parse(&"if ".repeat(1000)).is_err());
    }

    proptest! {
        #[test]
        fn no_script_is_too_strange(script in "[a-z$(){}<>|&;'\"\\\\ \n=#!?]{0,60}") {
            let _: Result<_, SyntaxError> = parse(&script);
        }
    }
}
