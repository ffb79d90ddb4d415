//! Questions frozen next to the inputs: one Parquet file per generation, sorted by key, read by ranges of keys.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt32Type};
use futures::TryStreamExt;
use parquet::arrow::ParquetRecordBatchStreamBuilder;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use slicemill_io::{OutputStore, ParquetEncoder, ParquetObject, RowGroupLimits};

use super::{Prompt, QuestionTable};
use crate::ExecError;
use crate::job::hex;

/// Key of the digest in the file's metadata.
const DIGEST_KEY: &str = "slicemill.questions";
/// Questions of a row group: what a chunk reads at least.
const ROWS_PER_GROUP: usize = 4096;

/// What is asked, as a number that does not depend on the order of keys: the sum of the SHA-256 of every question
/// modulo 2²⁵⁶. Sums of generations add up to the sum of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QuestionsDigest {
    /// Keys with questions.
    pub keys: u64,
    /// Questions.
    pub questions: u64,
    sum: [u64; 4],
}

impl QuestionsDigest {
    /// Adds the questions about `key`.
    pub fn add(&mut self, key: &str, prompts: &[Prompt]) {
        self.keys += 1;
        for prompt in prompts {
            let mut hash = Sha256::new();
            for part in [key, &prompt.question, &prompt.prompt] {
                hash.update((part.len() as u64).to_le_bytes());
                hash.update(part.as_bytes());
            }
            hash.update(prompt.question_id.to_le_bytes());
            self.questions += 1;
            self.add_words(&words(&hash.finalize()));
        }
    }

    /// Adds the questions of another set of keys.
    pub fn merge(&mut self, other: &Self) {
        self.keys += other.keys;
        self.questions += other.questions;
        self.add_words(&other.sum);
    }

    fn add_words(&mut self, other: &[u64; 4]) {
        let mut carry = false;
        for (mine, theirs) in self.sum.iter_mut().zip(other) {
            let (partial, first) = mine.overflowing_add(*theirs);
            let (total, second) = partial.overflowing_add(u64::from(carry));
            (*mine, carry) = (total, first || second);
        }
    }
}

impl std::fmt::Display for QuestionsDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sum: Vec<u8> = self.sum.iter().flat_map(|word| word.to_le_bytes()).collect();
        write!(f, "{} questions about {} images (digest {})", self.questions, self.keys, &hex(&sum)[..12])
    }
}

fn words(bytes: &[u8]) -> [u64; 4] {
    let mut words = [0; 4];
    for (word, eight) in words.iter_mut().zip(bytes.chunks_exact(8)) {
        *word = eight.iter().rev().fold(0, |value, byte| (value << 8) | u64::from(*byte));
    }
    words
}

fn schema() -> SchemaRef {
    let field = |name: &str, data_type| Field::new(name, data_type, false);
    Arc::new(Schema::new(vec![
        field("key", DataType::Utf8),
        field("question_id", DataType::UInt32),
        field("question", DataType::Utf8),
        field("prompt", DataType::Utf8),
    ]))
}

/// A frozen set of questions. Cheap to clone; in memory are only the limits of its row groups.
#[derive(Debug, Clone)]
pub struct FrozenQuestions {
    file: ParquetObject,
    metadata: ArrowReaderMetadata,
    digest: QuestionsDigest,
}

impl FrozenQuestions {
    /// Name of the questions of a generation.
    pub fn name(generation: u32) -> String {
        format!("_slicemill/questions-{generation:04}.parquet")
    }

    /// Writes the questions of a generation, replacing what an interrupted freeze left, and opens them.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn write(output: &OutputStore, generation: u32, table: &QuestionTable) -> Result<Self, ExecError> {
        let mut digest = QuestionsDigest::default();
        table.iter().for_each(|(key, prompts)| digest.add(key, prompts));
        let text = serde_json::to_string(&digest)
            .map_err(|error| ExecError::Corrupt { name: Self::name(generation), message: error.to_string() })?;
        let limits = RowGroupLimits { rows_max: ROWS_PER_GROUP, ..RowGroupLimits::default() };
        let mut encoder = ParquetEncoder::new(schema(), &[(DIGEST_KEY.to_owned(), text)], limits)?;
        let mut rows = Vec::with_capacity(ROWS_PER_GROUP);
        for (key, prompts) in table.iter() {
            rows.extend(prompts.iter().map(|prompt| (key, prompt)));
            if rows.len() >= ROWS_PER_GROUP {
                encoder.push(&batch(&rows)?)?;
                rows.clear();
            }
        }
        if !rows.is_empty() {
            encoder.push(&batch(&rows)?)?;
        }
        output.put(&Self::name(generation), encoder.finish()?).await?;
        Self::open(output, generation).await
    }

    /// Opens the questions of a generation.
    ///
    /// # Errors
    /// Those of the store, and when the file is not one of ours.
    pub async fn open(output: &OutputStore, generation: u32) -> Result<Self, ExecError> {
        let name = Self::name(generation);
        let corrupt = |message: String| ExecError::Corrupt { name: name.clone(), message };
        let object = output.head(&name).await?.ok_or_else(|| corrupt("it is not there".to_owned()))?;
        let file = ParquetObject::new(output.clone(), &object);
        let metadata = ArrowReaderMetadata::load_async(&mut file.clone(), ArrowReaderOptions::new())
            .await
            .map_err(|error| file.error(error))?;
        let pairs = metadata.metadata().file_metadata().key_value_metadata();
        let text = pairs.and_then(|pairs| pairs.iter().find(|pair| pair.key == DIGEST_KEY)?.value.clone());
        let digest = text
            .and_then(|text| serde_json::from_str(&text).ok())
            .ok_or_else(|| corrupt("its digest is missing".to_owned()))?;
        Ok(Self { file, metadata, digest })
    }

    /// What is asked.
    pub const fn digest(&self) -> &QuestionsDigest {
        &self.digest
    }

    /// Questions about these keys. Reads the row groups between the first and the last of them.
    ///
    /// # Errors
    /// Those of the store, and when the file is not one of ours.
    pub async fn read(&self, keys: &BTreeSet<&str>) -> Result<BTreeMap<String, Vec<Prompt>>, ExecError> {
        let mut prompts: BTreeMap<String, Vec<Prompt>> = BTreeMap::new();
        let (Some(first), Some(last)) = (keys.first(), keys.last()) else { return Ok(prompts) };
        let groups = self.groups_between(first.as_bytes(), last.as_bytes());
        if groups.is_empty() {
            return Ok(prompts);
        }
        let mut batches = ParquetRecordBatchStreamBuilder::new_with_metadata(self.file.clone(), self.metadata.clone())
            .with_row_groups(groups)
            .build()
            .map_err(|error| self.file.error(error))?;
        while let Some(batch) = batches.try_next().await.map_err(|error| self.file.error(error))? {
            collect(&batch, keys, &mut prompts);
        }
        Ok(prompts)
    }

    /// Row groups whose keys may lie between `first` and `last`.
    fn groups_between(&self, first: &[u8], last: &[u8]) -> Vec<usize> {
        let groups = self.metadata.metadata().row_groups().iter().enumerate();
        let meets = groups.filter(|(_, group)| match group.columns().first().and_then(|column| column.statistics()) {
            Some(statistics) => {
                statistics.max_bytes_opt().is_none_or(|max| max >= first)
                    && statistics.min_bytes_opt().is_none_or(|min| min <= last)
            }
            None => true,
        });
        meets.map(|(number, _)| number).collect()
    }
}

fn batch(rows: &[(&str, &Prompt)]) -> Result<RecordBatch, ExecError> {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(key, _)| *key))),
        Arc::new(UInt32Array::from_iter_values(rows.iter().map(|(_, prompt)| prompt.question_id))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, prompt)| &prompt.question))),
        Arc::new(StringArray::from_iter_values(rows.iter().map(|(_, prompt)| &prompt.prompt))),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}

fn collect(batch: &RecordBatch, wanted: &BTreeSet<&str>, prompts: &mut BTreeMap<String, Vec<Prompt>>) {
    let [keys, ids, questions, texts] = batch.columns() else { return };
    let (Some(keys), Some(ids), Some(questions), Some(texts)) = (
        keys.as_string_opt::<i32>(),
        ids.as_primitive_opt::<UInt32Type>(),
        questions.as_string_opt::<i32>(),
        texts.as_string_opt::<i32>(),
    ) else {
        return;
    };
    for at in 0..batch.num_rows() {
        let key = keys.value(at);
        if wanted.contains(key) {
            prompts.entry(key.to_owned()).or_default().push(Prompt {
                question_id: ids.value(at),
                question: questions.value(at).to_owned(),
                prompt: texts.value(at).to_owned(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use object_store::memory::InMemory;

    use super::super::{QuestionRow, Template};
    use super::*;

    #[test]
    fn digests_add_up() {
        let prompt = |id, text: &str| Prompt { question_id: id, question: text.to_owned(), prompt: text.to_owned() };
        let (a, b) = ([prompt(0, "How many?"), prompt(1, "Where?")], [prompt(0, "How many?")]);
        let digest = |sets: &[(&str, &[Prompt])]| {
            let mut digest = QuestionsDigest::default();
            sets.iter().for_each(|(key, prompts)| digest.add(key, prompts));
            digest
        };
        let (one, two) = (digest(&[("a", &a)]), digest(&[("b", &b)]));
        let mut merged = two;
        merged.merge(&one);
        assert_eq!(merged, digest(&[("a", &a), ("b", &b)]));
        assert_ne!(merged, digest(&[("b", &a), ("a", &b)]), "keys matter");
        assert_eq!((merged.keys, merged.questions), (2, 3));
    }

    #[tokio::test]
    async fn ranges_of_keys_are_read_back() {
        let output = OutputStore::with_store(Arc::new(InMemory::new()), "memory:///");
        let rows: Vec<QuestionRow> = (0..3 * ROWS_PER_GROUP)
            .map(|number| QuestionRow {
                place: format!("row {number}"),
                key: format!("{:06}.png", number / 2),
                question_id: None,
                question: format!("question {number}?"),
                columns: BTreeMap::new(),
            })
            .collect();
        let table = QuestionTable::new("q.jsonl", &rows, &Template::parse("Q: {question}").unwrap()).unwrap();
        let written = FrozenQuestions::write(&output, 0, &table).await.unwrap();
        let opened = FrozenQuestions::open(&output, 0).await.unwrap();
        assert_eq!(written.digest(), opened.digest());
        assert_eq!(opened.digest().questions, rows.len() as u64);
        assert_eq!(opened.groups_between(b"000100.png", b"000101.png"), [0], "statistics choose the row groups");
        for keys in [["000100.png", "000101.png"], ["002047.png", "006000.png"], ["a", "b"]] {
            let keys = BTreeSet::from(keys);
            let read = opened.read(&keys).await.unwrap();
            let expected: BTreeMap<String, Vec<Prompt>> = table
                .iter()
                .filter(|(key, _)| keys.contains(key))
                .map(|(key, prompts)| (key.to_owned(), prompts.to_vec()))
                .collect();
            assert_eq!(read, expected, "{keys:?}");
        }
    }
}
