//! Prompt syntax: emphasis in brackets, as AUTOMATIC1111's web UI reads it.
//!
//! | written | means |
//! |---|---|
//! | `(word)` | weight times 1.1 |
//! | `((word))` | twice times 1.1 |
//! | `[word]` | weight divided by 1.1 |
//! | `(word:1.2)` | weight times 1.2 |
//! | `\(`, `\)`, `\[`, `\]`, `\\` | the character itself |
//! | `BREAK` | ends a chunk of 75 tokens |
//!
//! Brackets that do not balance are tolerated: one that is never closed reaches to the end, one that
//! was never opened is text. A lone backslash is dropped.
//!
//! Differences from `parse_prompt_attention`, each for a prompt that the web UI mistreats or that
//! nobody writes: `BREAK` inside brackets breaks (there it becomes the literal word, weighted); a
//! weight that is not a number (`(a:1.2.3)`) is text (there an exception); weights are kept within
//! [`MAX_WEIGHT`]; brackets deeper than [`MAX_DEPTH`] carry no weight.

/// Brackets of one kind nested deeper than this are read and weigh nothing. It keeps the parser
/// linear: 1.1 to the 64th is 445, past any use.
pub const MAX_DEPTH: usize = 64;

/// Weights are clamped to this magnitude, so that no product overflows.
pub const MAX_WEIGHT: f64 = 1e6;

const ROUND: f64 = 1.1;
const SQUARE: f64 = 1.0 / 1.1;
const BREAK: &str = "BREAK";

/// How a prompt is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Syntax {
    /// Emphasis brackets, escapes and `BREAK`.
    #[default]
    Automatic1111,
    /// The text as it stands.
    Plain,
}

/// A piece of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// Text of one weight.
    Text(Weighted),
    /// The next piece begins a new chunk of tokens.
    Break,
}

/// Text and its weight; 1 is unweighted.
#[derive(Debug, Clone, PartialEq)]
pub struct Weighted {
    /// The text, escapes resolved.
    pub text: String,
    /// What its embeddings are multiplied by.
    pub weight: f64,
}

impl Piece {
    fn text(text: impl Into<String>) -> Self {
        Piece::Text(Weighted {
            text: text.into(),
            weight: 1.0,
        })
    }
}

/// Reads a prompt: never fails, takes time linear in its length. At least one piece; neighbours of
/// equal weight are one.
///
/// ```
/// use aquatint_models::text::prompt::{Piece, Syntax, Weighted, parse};
/// let text = |text: &str, weight| Piece::Text(Weighted { text: text.into(), weight });
/// assert_eq!(
///     parse("an (important) word", Syntax::Automatic1111),
///     [text("an ", 1.0), text("important", 1.1), text(" word", 1.0)],
/// );
/// assert_eq!(parse("(as it is)", Syntax::Plain), [text("(as it is)", 1.0)]);
/// ```
pub fn parse(prompt: &str, syntax: Syntax) -> Vec<Piece> {
    match syntax {
        Syntax::Plain => vec![Piece::text(prompt)],
        Syntax::Automatic1111 => {
            let mut parser = Parser::default();
            let mut rest = prompt;
            while let Some((token, after)) = next_token(rest) {
                parser.token(token);
                rest = after;
            }
            parser.finish()
        }
    }
}

/// The lexical elements, in the order in which they are tried.
#[derive(Debug, PartialEq)]
enum Token<'a> {
    /// An escaped bracket or backslash.
    Escaped(char),
    /// A backslash before anything else.
    LoneBackslash,
    Open(char),
    /// `:1.2)`, as written, and its number.
    Weight(&'a str, f64),
    Close(char),
    Run(&'a str),
}

fn next_token(rest: &str) -> Option<(Token<'_>, &str)> {
    let first = rest.chars().next()?;
    let after = &rest[first.len_utf8()..];
    Some(match first {
        '\\' => match after.chars().next() {
            Some(c @ ('(' | ')' | '[' | ']' | '\\')) => (Token::Escaped(c), &after[1..]),
            _ => (Token::LoneBackslash, after),
        },
        '(' | '[' => (Token::Open(first), after),
        ')' | ']' => (Token::Close(first), after),
        ':' => match weight(rest) {
            Some((written, number)) => (Token::Weight(written, number), &rest[written.len()..]),
            None => (Token::Run(&rest[..1]), after),
        },
        _ => {
            let end = rest.find(['\\', '(', ')', '[', ']', ':']);
            let (run, after) = rest.split_at(end.unwrap_or(rest.len()));
            (Token::Run(run), after)
        }
    })
}

/// `:1.2)` at the start of `rest`, and the number, where it is one.
fn weight(rest: &str) -> Option<(&str, f64)> {
    let body = rest.strip_prefix(':')?;
    let digits = body.strip_prefix(['+', '-']).unwrap_or(body);
    let length = digits.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    if !digits[length..].starts_with(')') {
        return None;
    }
    let end = 1 + (body.len() - digits.len()) + length;
    let number: f64 = rest[1..end].parse().ok()?;
    number.is_finite().then(|| (&rest[..=end], number))
}

/// Positions in the output where open brackets of one kind began.
#[derive(Default)]
struct Open {
    starts: Vec<usize>,
    /// Brackets open beyond [`MAX_DEPTH`].
    beyond: usize,
}

impl Open {
    fn push(&mut self, start: usize) {
        if self.starts.len() < MAX_DEPTH {
            self.starts.push(start);
        } else {
            self.beyond += 1;
        }
    }

    /// Closes the innermost: `None` when nothing is open, `Some(None)` when it weighs nothing.
    fn pop(&mut self) -> Option<Option<usize>> {
        if self.beyond > 0 {
            self.beyond -= 1;
            return Some(None);
        }
        self.starts.pop().map(Some)
    }
}

#[derive(Default)]
struct Parser {
    pieces: Vec<Piece>,
    round: Open,
    square: Open,
}

impl Parser {
    fn token(&mut self, token: Token<'_>) {
        match token {
            Token::Escaped(c) => self.pieces.push(Piece::text(c)),
            Token::LoneBackslash => self.pieces.push(Piece::text("")),
            Token::Open('(') => self.round.push(self.pieces.len()),
            Token::Open(_) => self.square.push(self.pieces.len()),
            Token::Weight(written, number) => match self.round.pop() {
                Some(start) => self.multiply(start, number),
                None => self.run(written),
            },
            Token::Close(')') => match self.round.pop() {
                Some(start) => self.multiply(start, ROUND),
                None => self.run(")"),
            },
            Token::Close(_) => match self.square.pop() {
                Some(start) => self.multiply(start, SQUARE),
                None => self.run("]"),
            },
            Token::Run(text) => self.run(text),
        }
    }

    fn multiply(&mut self, start: Option<usize>, factor: f64) {
        // Each piece is reached once by each bracket around it, of which there are at most
        // 2 MAX_DEPTH at any place.
        for piece in self.pieces.iter_mut().skip(start.unwrap_or(usize::MAX)) {
            if let Piece::Text(text) = piece {
                text.weight = (text.weight * factor).clamp(-MAX_WEIGHT, MAX_WEIGHT);
            }
        }
    }

    /// Text without brackets, cut at each word `BREAK` and the space around it.
    fn run(&mut self, text: &str) {
        let mut rest = text;
        while let Some(at) = find_break(rest) {
            self.pieces.push(Piece::text(rest[..at].trim_end()));
            self.pieces.push(Piece::Break);
            rest = rest[at + BREAK.len()..].trim_start();
        }
        self.pieces.push(Piece::text(rest));
    }

    fn finish(mut self) -> Vec<Piece> {
        for start in std::mem::take(&mut self.round.starts) {
            self.multiply(Some(start), ROUND);
        }
        for start in std::mem::take(&mut self.square.starts) {
            self.multiply(Some(start), SQUARE);
        }
        let mut merged: Vec<Piece> = Vec::new();
        for piece in self.pieces {
            match (merged.last_mut(), piece) {
                (Some(Piece::Text(last)), Piece::Text(next)) if last.weight == next.weight => {
                    last.text.push_str(&next.text);
                }
                (_, piece) => merged.push(piece),
            }
        }
        if merged.is_empty() {
            merged.push(Piece::text(""));
        }
        merged
    }
}

/// Where the word `BREAK` stands alone.
fn find_break(text: &str) -> Option<usize> {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(BREAK).map(|(at, _)| at).find(|&at| {
        !text[..at].ends_with(is_word) && !text[at + BREAK.len()..].starts_with(is_word)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn a1111(prompt: &str) -> Vec<(String, f64)> {
        parse(prompt, Syntax::Automatic1111)
            .into_iter()
            .map(|piece| match piece {
                Piece::Text(Weighted { text, weight }) => (text, weight),
                Piece::Break => (BREAK.to_owned(), -1.0),
            })
            .collect()
    }

    #[track_caller]
    fn check(prompt: &str, want: &[(&str, f64)]) {
        let got = a1111(prompt);
        let got: Vec<(&str, f64)> = got.iter().map(|(t, w)| (t.as_str(), *w)).collect();
        assert_eq!(got, want, "{prompt}");
    }

    #[test]
    fn the_examples_of_the_web_ui() {
        check("normal text", &[("normal text", 1.0)]);
        check(
            "an (important) word",
            &[("an ", 1.0), ("important", 1.1), (" word", 1.0)],
        );
        check("(unbalanced", &[("unbalanced", 1.1)]);
        check(r"\(literal\]", &[("(literal]", 1.0)]);
        check("(unnecessary)(parens)", &[("unnecessaryparens", 1.1)]);
        check(
            "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).",
            &[
                ("a ", 1.0),
                ("house", 1.5730000000000004),
                (" ", 1.1),
                ("on", 1.0),
                (" a ", 1.1),
                ("hill", 0.55),
                (", sun, ", 1.1),
                ("sky", 1.4641000000000006),
                (".", 1.1),
            ],
        );
    }

    #[test]
    fn brackets_that_do_not_balance() {
        check("a) b]", &[("a) b]", 1.0)]);
        check("", &[("", 1.0)]);
        check("()", &[("", 1.0)]);
        check("[a", &[("a", SQUARE)]);
        check(
            "(a [b) c]",
            &[("a ", 1.1), ("b", SQUARE * 1.1), (" c", SQUARE)]
                .map(|(t, w)| if t == "b" { (t, 1.1 * SQUARE) } else { (t, w) }),
        );
        check("a:1.2)", &[("a:1.2)", 1.0)]);
        check("[a:1.2)]", &[("a:1.2)", SQUARE)]);
    }

    #[test]
    fn weights() {
        check("(a:1.)", &[("a", 1.0)]);
        check("(a:.5)", &[("a", 0.5)]);
        check("(a:-1)", &[("a", -1.0)]);
        check("(a:+2)", &[("a", 2.0)]);
        check("(a: 2)", &[("a: 2", 1.1)]);
        check("(a:1.2.3)", &[("a:1.2.3", 1.1)]);
        check("(a:.)", &[("a:.", 1.1)]);
        check("(a:)", &[("a:", 1.1)]);
        check("(a:1e5)", &[("a:1e5", 1.1)]);
        check("((a:99999999):99999999)", &[("a", MAX_WEIGHT)]);
        check("3:4", &[("3:4", 1.0)]);
    }

    #[test]
    fn escapes() {
        check(r"\\", &[("\\", 1.0)]);
        check(r"\a", &[("a", 1.0)]);
        check("a\\", &[("a", 1.0)]);
        check(r"(\(:1.5)", &[("(", 1.5)]);
        check(r"\\(a)", &[("\\", 1.0), ("a", 1.1)]);
    }

    #[test]
    fn breaks() {
        check("a BREAK b", &[("a", 1.0), ("BREAK", -1.0), ("b", 1.0)]);
        check("aBREAK BREAK_ b", &[("aBREAK BREAK_ b", 1.0)]);
        check(
            "BREAK BREAK",
            &[
                ("", 1.0),
                ("BREAK", -1.0),
                ("", 1.0),
                ("BREAK", -1.0),
                ("", 1.0),
            ],
        );
        check(
            "(a BREAK b:1.2)",
            &[("a", 1.2), ("BREAK", -1.0), ("b", 1.2)],
        );
        check(
            "a,\nBREAK\n(b)",
            &[("a,", 1.0), ("BREAK", -1.0), ("", 1.0), ("b", 1.1)],
        );
    }

    #[test]
    fn plain_text_passes() {
        let text = r"a (b:1.2) \( BREAK [c]";
        assert_eq!(parse(text, Syntax::Plain), [Piece::text(text)]);
    }

    #[test]
    fn depth_is_bounded_and_long_prompts_are_quick() {
        let deep = format!("{}a{}b", "(".repeat(1000), ")".repeat(1000));
        check(&deep, &[("a", a1111(&deep)[0].1), ("b", 1.0)]);
        assert!((a1111(&deep)[0].1 / 1.1f64.powi(64) - 1.0).abs() < 1e-9);
        let long = "(a".repeat(200_000);
        let start = std::time::Instant::now();
        assert!(!a1111(&long).is_empty());
        // A quadratic parser would take minutes.
        assert!(start.elapsed().as_secs() < 20);
    }

    proptest! {
        #[test]
        fn no_text_is_lost_or_invented(prompt in r"[a-c \[\]():.0-9BREAK\\é]{0,60}") {
            let pieces = parse(&prompt, Syntax::Automatic1111);
            prop_assert!(!pieces.is_empty());
            let mut source = prompt.chars();
            for piece in &pieces {
                match piece {
                    Piece::Text(Weighted { text, weight }) => {
                        prop_assert!(weight.is_finite());
                        prop_assert!(text.chars().all(|c| source.any(|s| s == c)));
                    }
                    Piece::Break => prop_assert!(BREAK.chars().all(|c| source.any(|s| s == c))),
                }
            }
            for pair in pieces.windows(2) {
                if let [Piece::Text(a), Piece::Text(b)] = pair {
                    prop_assert_ne!(a.weight, b.weight);
                }
            }
        }

        #[test]
        fn escaped_text_comes_back(text in r"[ -~]{0,40}") {
            prop_assume!(find_break(&text).is_none());
            let escaped: String = text
                .chars()
                .flat_map(|c| match c {
                    '(' | ')' | '[' | ']' | '\\' => vec!['\\', c],
                    _ => vec![c],
                })
                .collect();
            // An escape may free a BREAK that stood within a word; then there are more pieces.
            prop_assume!(!text.contains(BREAK));
            prop_assert_eq!(parse(&escaped, Syntax::Automatic1111), [Piece::text(text)]);
        }

        #[test]
        fn any_text_is_read(prompt in any::<String>()) {
            parse(&prompt, Syntax::Automatic1111);
        }
    }
}
