//! Questions by image key, and what to say when keys and inputs do not match.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::{Prompt, QuestionRow, QuestionsError, Template};

/// Unmatched keys that an error names.
const EXAMPLES: usize = 3;

/// The questions of a file by image key, numbered and inside their template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuestionTable {
    name: String,
    prompts: BTreeMap<String, Arc<[Prompt]>>,
    /// Where each key stands first, for messages.
    places: HashMap<String, String>,
}

/// The same questions for every image, numbered from 0.
pub fn same_for_all(ask: &[String], template: &Template) -> Arc<[Prompt]> {
    (0..).zip(ask).map(|(id, question)| prompt(id, question, template, &BTreeMap::new())).collect()
}

fn prompt(id: u32, question: &str, template: &Template, columns: &BTreeMap<String, String>) -> Prompt {
    Prompt { question_id: id, question: question.to_owned(), prompt: template.render(question, columns) }
}

impl QuestionTable {
    /// The table of a questions file called `name`.
    ///
    /// Questions of one image are numbered from 0 in the order of the file, unless the file numbers them.
    ///
    /// # Errors
    /// When there are none, a number occurs twice for a key, numbers are given for some questions of a key only, or
    /// the template names a column that no row has.
    pub fn new(name: &str, rows: &[QuestionRow], template: &Template) -> Result<Self, QuestionsError> {
        if rows.is_empty() {
            return Err(QuestionsError::Empty { name: name.to_owned() });
        }
        check_columns(name, rows, template)?;
        let mut by_key: BTreeMap<&str, Vec<&QuestionRow>> = BTreeMap::new();
        for row in rows {
            by_key.entry(&row.key).or_default().push(row);
        }
        let mut prompts = BTreeMap::new();
        let mut places = HashMap::new();
        for (key, rows) in by_key {
            prompts.insert(key.to_owned(), number(name, &rows, template)?);
            if let Some(first) = rows.first() {
                places.insert(key.to_owned(), first.place.clone());
            }
        }
        Ok(Self { name: name.to_owned(), prompts, places })
    }

    /// The questions about `key`, `None` when there are none.
    pub fn get(&self, key: &str) -> Option<&Arc<[Prompt]>> {
        self.prompts.get(key)
    }

    /// Keys in bytewise order with their questions.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[Prompt])> {
        self.prompts.iter().map(|(key, prompts)| (key.as_str(), &**prompts))
    }

    /// Every key.
    pub fn keys(&self) -> HashSet<String> {
        self.prompts.keys().cloned().collect()
    }

    /// Keeps the questions about these keys only.
    pub fn retain(&mut self, keys: &HashSet<String>) {
        self.prompts.retain(|key, _| keys.contains(key));
    }

    /// Takes the questions of `key` out.
    pub fn remove(&mut self, key: &str) -> Option<Arc<[Prompt]>> {
        self.prompts.remove(key)
    }

    /// Refuses keys that are not among `matched`. `example` is a key of an input, to show what keys look like.
    ///
    /// # Errors
    /// [`QuestionsError::Unmatched`] with the first few of them.
    pub fn check_matched(&self, matched: &HashSet<String>, example: Option<&str>) -> Result<(), QuestionsError> {
        let mut unmatched = self.prompts.keys().filter(|key| !matched.contains(*key));
        let first: Vec<&String> = unmatched.by_ref().take(EXAMPLES).collect();
        if first.is_empty() {
            return Ok(());
        }
        let count = first.len() + unmatched.count();
        let place = |key: &String| self.places.get(key).map_or("", String::as_str).to_owned();
        Err(QuestionsError::Unmatched {
            name: self.name.clone(),
            count,
            examples: first.into_iter().map(|key| format!("{key} ({})", place(key))).collect(),
            hint: match example {
                Some(key) => format!("keys look like {key}"),
                None => "there are no inputs".to_owned(),
            },
        })
    }
}

fn check_columns(name: &str, rows: &[QuestionRow], template: &Template) -> Result<(), QuestionsError> {
    for column in template.columns().filter(|column| *column != "question") {
        let known = match column {
            "key" => true,
            column => rows.iter().any(|row| row.columns.contains_key(column)),
        };
        if !known {
            return Err(QuestionsError::Column { name: name.to_owned(), column: column.to_owned() });
        }
    }
    Ok(())
}

/// Prompts of one image in the order of their numbers.
fn number(name: &str, rows: &[&QuestionRow], template: &Template) -> Result<Arc<[Prompt]>, QuestionsError> {
    let bad = |row: &QuestionRow, message: String| QuestionsError::Row {
        name: name.to_owned(),
        place: row.place.clone(),
        message,
    };
    let numbered = rows.iter().any(|row| row.question_id.is_some());
    let mut seen = HashSet::new();
    let mut prompts = Vec::with_capacity(rows.len());
    for (position, row) in (0..).zip(rows) {
        let id = match row.question_id {
            Some(id) => id,
            None if numbered => {
                return Err(bad(
                    row,
                    format!("no question_id, but other questions of {} have one; number all or none", row.key),
                ));
            }
            None => position,
        };
        if !seen.insert(id) {
            return Err(bad(row, format!("question_id {id} occurs twice for {}; give each question its own", row.key)));
        }
        let mut columns = row.columns.clone();
        columns.insert("key".to_owned(), row.key.clone());
        prompts.push(prompt(id, &row.question, template, &columns));
    }
    prompts.sort_by_key(|prompt| prompt.question_id);
    Ok(prompts.into())
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::read_questions;
    use super::*;

    fn check(name: &str, text: &str, template: &str) -> Result<String, String> {
        let template = Template::parse(template).unwrap();
        let rows = read_questions(name, &Bytes::copy_from_slice(text.as_bytes())).map_err(|error| error.to_string())?;
        let table = QuestionTable::new(name, &rows, &template).map_err(|error| error.to_string())?;
        let keys = ["a.png", "b.png", "c.png"];
        let matched: HashSet<String> =
            keys.iter().filter(|key| table.get(key).is_some()).map(|key| (*key).to_owned()).collect();
        table.check_matched(&matched, Some(keys[0])).map_err(|error| error.to_string())?;
        let prompts = table.iter().flat_map(|(key, prompts)| prompts.iter().map(move |prompt| (key, prompt)));
        let lines: Vec<String> = prompts.map(|(key, p)| format!("{key} {} {}", p.question_id, p.prompt)).collect();
        Ok(lines.join("; "))
    }

    #[test]
    fn joins() {
        let jsonl = "{\"key\":\"b.png\",\"question\":\"How many?\"}\n\n{\"key\":\"b.png\",\"question\":\"Where?\"}\n";
        assert_eq!(check("q.jsonl", jsonl, "{question}").unwrap(), "b.png 0 How many?; b.png 1 Where?");
        let csv = "key,question,question_id,hint\na.png,\"x, y?\",7,in red\na.png,Z?,3,\n";
        assert_eq!(
            check("q.CSV", csv, "{question} ({hint}) {key}").unwrap(),
            "a.png 3 Z? () a.png; a.png 7 x, y? (in red) a.png"
        );
        // Keys that look like numbers stay as they are written.
        assert!(check("q.csv", "key,question\n007,Q?\n", "{question}").unwrap_err().contains("first 007 (line 2)"));
    }

    #[test]
    fn refuses() {
        for (name, text, template, error) in [
            (
                "q.txt",
                "",
                "{question}",
                "q.txt: cannot tell the form of a questions file by this name; call it .jsonl, .csv or .parquet",
            ),
            ("q.jsonl", "\n", "{question}", "q.jsonl: no questions; every row needs the columns key and question"),
            (
                "q.jsonl",
                "{\"key\":\"a.png\"}",
                "{question}",
                "q.jsonl, line 1: no question; every row needs the columns key and question",
            ),
            (
                "q.csv",
                "key,question,question_id\na.png,Q,x\n",
                "{question}",
                "q.csv, line 2: question_id x is not a whole number from 0 to 4294967295",
            ),
            (
                "q.csv",
                "key,question,question_id\na.png,Q,1\na.png,R,1\n",
                "{question}",
                "q.csv, line 3: question_id 1 occurs twice for a.png; give each question its own",
            ),
            (
                "q.csv",
                "key,question,question_id\na.png,Q,1\na.png,R,\n",
                "{question}",
                "q.csv, line 3: no question_id, but other questions of a.png have one; number all or none",
            ),
            (
                "q.csv",
                "key,question\na.png,Q\n",
                "{question} {hint}",
                "q.csv: the template names {hint}, and no row has this column",
            ),
            (
                "q.csv",
                "key,question\nA.png,Q\nA.png,R\nd.png,Q\n",
                "{question}",
                "q.csv: 2 of its keys are not among the inputs, first A.png (line 2), d.png (line 4); keys look like a.png",
            ),
        ] {
            assert_eq!(check(name, text, template), Err(error.to_owned()), "{name} {text}");
        }
    }
}
