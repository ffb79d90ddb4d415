//! The prompt around a question: text with `{question}` and other columns of the questions file as `{name}`.

use std::collections::BTreeMap;

/// The template when none is given: the question itself.
pub const TEMPLATE_DEFAULT: &str = "{question}";

/// Why a text is not a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// `{` without `}` or the other way round.
    #[error("the brace at character {0} has no partner")]
    Unbalanced(usize),
    /// `{}`.
    #[error("the braces at character {0} name no column")]
    Unnamed(usize),
    /// No `{question}`.
    #[error("the template has no {{question}}, so all questions would be the same")]
    NoQuestion,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(String),
    Column(String),
}

/// A checked template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

impl Template {
    /// Reads a template. `{{` and `}}` are braces.
    ///
    /// # Errors
    /// See [`TemplateError`].
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut letters = text.chars().enumerate().peekable();
        while let Some((at, letter)) = letters.next() {
            match letter {
                '{' | '}' if letters.peek().is_some_and(|(_, next)| *next == letter) => {
                    plain.push(letter);
                    letters.next();
                }
                '{' => {
                    let mut name = String::new();
                    loop {
                        match letters.next() {
                            Some((_, '}')) => break,
                            Some((_, '{')) | None => return Err(TemplateError::Unbalanced(at + 1)),
                            Some((_, letter)) => name.push(letter),
                        }
                    }
                    let name = name.trim();
                    if name.is_empty() {
                        return Err(TemplateError::Unnamed(at + 1));
                    }
                    parts.push(Part::Text(std::mem::take(&mut plain)));
                    parts.push(Part::Column(name.to_owned()));
                }
                '}' => return Err(TemplateError::Unbalanced(at + 1)),
                letter => plain.push(letter),
            }
        }
        parts.push(Part::Text(plain));
        let template = Self { parts };
        if template.columns().any(|column| column == "question") {
            Ok(template)
        } else {
            Err(TemplateError::NoQuestion)
        }
    }

    /// Columns that are put in, with repetitions.
    pub fn columns(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Column(name) => Some(name.as_str()),
            Part::Text(_) => None,
        })
    }

    /// The prompt of `question`; columns that `columns` lacks are empty.
    pub fn render(&self, question: &str, columns: &BTreeMap<String, String>) -> String {
        self.parts
            .iter()
            .map(|part| match part {
                Part::Text(text) => text.as_str(),
                Part::Column(name) if name == "question" => question,
                Part::Column(name) => columns.get(name).map_or("", String::as_str),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders() {
        let columns = BTreeMap::from([("hint".to_owned(), "look {left}".to_owned())]);
        for (template, prompt) in [
            ("{question}", "How many?"),
            ("Q: {question} ({ hint }) A:", "Q: How many? (look {left}) A:"),
            ("{{{question}}}", "{How many?}"),
            ("{question}{question}", "How many?How many?"),
        ] {
            assert_eq!(Template::parse(template).unwrap().render("How many?", &columns), prompt, "{template}");
        }
    }

    #[test]
    fn refuses() {
        for (template, error) in [
            ("{question", TemplateError::Unbalanced(1)),
            ("question}", TemplateError::Unbalanced(9)),
            ("a {} {question}", TemplateError::Unnamed(3)),
            ("Describe.", TemplateError::NoQuestion),
            ("{{question}}", TemplateError::NoQuestion),
        ] {
            assert_eq!(Template::parse(template), Err(error), "{template}");
        }
    }
}
