//! Flags as the job document that a job file would hold.

use toml::{Table, Value};

use crate::args::{AskArgs, CaptionArgs, EncodeArgs, GenerationFlags, InputFlags, JobFlags, PlanArgs, SlicesArgs};

/// A job document in the making.
#[derive(Debug, Default)]
pub struct Document(Table);

impl Document {
    /// A document for `task` over `inputs`.
    pub fn new(task: &str, inputs: &[String]) -> Self {
        let mut document = Self::default();
        document.0.insert("task".to_owned(), Value::String(task.to_owned()));
        document.list("input.paths", inputs);
        document
    }

    /// The finished document.
    pub fn into_table(self) -> Table {
        self.0
    }

    /// Sets the dotted key `path` when there is a value.
    fn set(&mut self, path: &str, value: Option<impl Into<Value>>) {
        let (Some(value), Some((section, name))) = (value, path.split_once('.')) else { return };
        let section = self.0.entry(section.to_owned()).or_insert_with(|| Value::Table(Table::new()));
        if let Value::Table(section) = section {
            section.insert(name.to_owned(), value.into());
        }
    }

    /// Sets the dotted key `path` when the list is not empty.
    fn list(&mut self, path: &str, values: &[String]) {
        let values: Vec<Value> = values.iter().cloned().map(Value::String).collect();
        self.set(path, (!values.is_empty()).then_some(Value::Array(values)));
    }

    fn input(&mut self, flags: &InputFlags) {
        self.list("input.keep", &flags.keep);
        self.set("input.where", flags.filter.clone());
        self.set("input.sample", flags.sample.clone());
        self.set("input.limit", flags.limit.map(saturate));
        self.set("input.image_column", flags.image_column.clone());
        self.set("input.key_column", flags.key_column.clone());
        self.set("input.root", flags.root.clone());
    }

    fn job(&mut self, flags: &JobFlags) {
        self.input(&flags.input);
        self.set("model.name", flags.model.clone());
        self.set("model.windows", flags.windows.clone());
        self.set("slicing.policy", flags.policy.clone());
        self.set("slicing.side", flags.side.map(i64::from));
        self.set("slicing.patch", flags.patch.map(i64::from));
        self.set("slicing.max_slices", flags.max_slices.map(i64::from));
        self.set("image.orientation", flags.orientation.clone());
        self.set("image.alpha", flags.alpha.clone());
        self.set("image.pixels_max", flags.pixels_max.map(saturate));
        self.set("image.truncated", flags.allow_truncated.then_some("allow"));
        self.list("output.columns", &flags.columns);
        self.set("output.chunk_rows", flags.chunk_rows.map(saturate));
        self.set("output.shard_rows", flags.shard_rows.map(saturate));
        self.set("output.shard_bytes", flags.shard_bytes.map(saturate));
    }

    fn generation(&mut self, flags: &GenerationFlags) {
        self.set("generation.max_new_tokens", flags.max_new_tokens.map(i64::from));
        self.set("generation.temperature", flags.temperature);
        self.set("generation.top_k", flags.top_k.map(i64::from));
        self.set("generation.top_p", flags.top_p);
        self.set("generation.repetition_penalty", flags.repetition_penalty);
        self.set("generation.num_beams", flags.num_beams.map(i64::from));
        self.set("generation.length_penalty", flags.length_penalty);
        self.set("generation.early_stopping", flags.early_stopping.then_some(true));
        self.set("generation.seed", flags.seed.map(saturate));
    }
}

/// TOML integers are signed; what is larger is refused by the job's own check of its limits.
fn saturate(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// `caption`.
pub fn caption(args: &CaptionArgs) -> Table {
    let mut document = Document::new("caption", &args.inputs);
    document.set("output.path", Some(args.output.clone()));
    document.set("prompt.text", args.prompt.clone());
    document.job(&args.job);
    document.generation(&args.generation);
    document.into_table()
}

/// `ask`.
pub fn ask(args: &AskArgs) -> Table {
    let mut document = Document::new("ask", &args.inputs);
    document.set("output.path", Some(args.output.clone()));
    document.list("questions.ask", &args.ask);
    document.set("questions.file", args.questions.clone());
    document.set("questions.template", args.template.clone());
    document.job(&args.job);
    document.generation(&args.generation);
    document.into_table()
}

/// `encode`.
pub fn encode(args: &EncodeArgs) -> Table {
    let mut document = Document::new("encode", &args.inputs);
    document.set("output.path", Some(args.output.clone()));
    document.set("encode.dtype", args.dtype.clone());
    document.job(&args.job);
    document.into_table()
}

/// `plan` over inputs: an ask job when there are questions, else a caption job. Nothing is written to its output.
pub fn plan(args: &PlanArgs) -> Table {
    let mut document = Document::new(if args.ask.is_empty() { "caption" } else { "ask" }, &args.inputs);
    document.set("output.path", Some("out".to_owned()));
    document.set("prompt.text", args.prompt.clone());
    document.list("questions.ask", &args.ask);
    document.job(&args.job);
    document.generation(&args.generation);
    document.into_table()
}

/// `slices`: a caption job over the images, of which only model, slicing and pixels matter.
pub fn slices(args: &SlicesArgs) -> Table {
    let inputs: Vec<String> = args.images.iter().map(|image| image.display().to_string()).collect();
    let mut document = Document::new("caption", &inputs);
    document.set("output.path", Some(args.output.display().to_string()));
    document.job(&args.job);
    document.into_table()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_become_keys() {
        let args = CaptionArgs {
            inputs: vec!["photos".to_owned()],
            output: "out".to_owned(),
            prompt: None,
            share: crate::args::ShareFlags::default(),
            job: JobFlags { side: Some(112), columns: vec!["+token_ids".to_owned()], ..JobFlags::default() },
            generation: GenerationFlags { temperature: Some(0.5), ..GenerationFlags::default() },
            run: crate::args::RunFlags::default(),
        };
        let expected: Table = "task = 'caption'\n[input]\npaths = ['photos']\n[output]\npath = 'out'\ncolumns = ['+token_ids']\n[slicing]\nside = 112\n[generation]\ntemperature = 0.5\n"
            .parse()
            .unwrap();
        assert_eq!(caption(&args), expected);
    }
}
