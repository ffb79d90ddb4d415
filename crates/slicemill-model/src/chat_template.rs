//! Chat templates: the Jinja text with which a checkpoint turns a conversation into one prompt.
//!
//! A template sees what transformers shows it: `messages`, `add_generation_prompt`, the special tokens (`bos_token`, …),
//! `tools` and `documents` (none), further options such as `enable_thinking`, and `raise_exception`; blocks are trimmed,
//! loops may break, strings have Python's methods, `tojson` writes what Python's `json.dumps` writes.
//!
//! What is absent, on purpose: `strftime_now`. The prompt would be another one every day. Templates that ask whether it
//! is defined fall back on a date of their own; `date_string` and the like can be given as options.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

use crate::error::ModelError;
use crate::tokenizer::Files;

const CONFIG: &str = "tokenizer_config.json";
const PLAIN: &str = "chat_template.jinja";
const WRAPPED: &str = "chat_template.json";
const NAME: &str = "chat_template";

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`, or what else the template knows.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn of this role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// What a template is told beside the conversation.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatOptions {
    /// Whether the prompt ends where the answer begins.
    pub add_generation_prompt: bool,
    /// Further variables, such as `enable_thinking`; they override all others but the conversation.
    pub variables: BTreeMap<String, serde_json::Value>,
}

impl ChatOptions {
    /// For a prompt that is to be answered.
    pub fn answer() -> Self {
        Self { add_generation_prompt: true, variables: BTreeMap::new() }
    }

    /// With one more variable.
    #[must_use]
    pub fn with(mut self, name: impl Into<String>, value: impl Into<serde_json::Value>) -> Self {
        self.variables.insert(name.into(), value.into());
        self
    }
}

/// A compiled template, with the special tokens of its tokenizer.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    tokens: BTreeMap<String, serde_json::Value>,
    files: Vec<PathBuf>,
}

impl ChatTemplate {
    /// Reads the template of a checkpoint directory: chat_template.jinja, or the one in tokenizer_config.json, or
    /// chat_template.json; nothing when there is none.
    ///
    /// # Errors
    /// When a file cannot be read, or what it holds is no template.
    pub fn open(dir: &Path) -> Result<Option<Self>, ModelError> {
        let Some((path, source)) = find(dir)? else { return Ok(None) };
        let files = Files::beside(dir)?;
        let mut template = Self::compile(&source, files.named()).map_err(|what| problem(&path, what))?;
        template.files = files.read;
        if !template.files.contains(&path) {
            template.files.push(path);
        }
        template.files.sort();
        Ok(Some(template))
    }

    /// Compiles a template; `tokens` are variables such as `bos_token`.
    ///
    /// # Errors
    /// When it is no template: where, and why.
    pub fn compile(source: &str, tokens: BTreeMap<String, serde_json::Value>) -> Result<Self, String> {
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| e.to_string())?);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.set_formatter(print);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", refuse);
        environment
            .add_template_owned(NAME, source.to_owned())
            .map_err(|e| format!("has a chat template that cannot be compiled: {}", describe(&e)))?;
        Ok(Self { environment, tokens, files: Vec::new() })
    }

    /// The prompt for a conversation.
    ///
    /// # Errors
    /// When the template refuses it, or needs something that is not there.
    pub fn render(&self, messages: &[Message], options: &ChatOptions) -> Result<String, String> {
        let none = || Value::from(());
        let mut variables: BTreeMap<&str, Value> = BTreeMap::from([("tools", none()), ("documents", none())]);
        variables.extend(self.tokens.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value)))));
        variables.insert("add_generation_prompt", Value::from(options.add_generation_prompt));
        let given = options.variables.iter();
        variables.extend(given.map(|(name, value)| (name.as_str(), Value::from(Serde(value)))));
        variables.insert("messages", Value::from(Serde(messages)));
        let template = self.environment.get_template(NAME).map_err(|e| describe(&e))?;
        template.render(variables).map_err(|e| format!("the chat template makes no prompt of this: {}", describe(&e)))
    }

    /// The files that decide about the prompt, in order of their names.
    pub fn files(&self) -> &[PathBuf] {
        &self.files
    }
}

/// The file that has the template, and the template.
fn find(dir: &Path) -> Result<Option<(PathBuf, String)>, ModelError> {
    let read = |path: &Path| std::fs::read_to_string(path).map_err(|e| problem(path, format!("cannot be read: {e}")));
    let path = dir.join(PLAIN);
    if path.is_file() {
        let source = read(&path)?;
        return Ok(Some((path, source)));
    }
    for name in [CONFIG, WRAPPED] {
        let path = dir.join(name);
        if !path.is_file() {
            continue;
        }
        let value: serde_json::Value = serde_json::from_str(&read(&path)?)
            .map_err(|e| problem(&path, format!("is not as expected: {e}; copy it again")))?;
        if let Some(source) = default_of(value.get("chat_template")).map_err(|what| problem(&path, what))? {
            return Ok(Some((path, source)));
        }
    }
    Ok(None)
}

/// A template, or the one named `default` of several.
fn default_of(value: Option<&serde_json::Value>) -> Result<Option<String>, String> {
    use serde_json::Value::{Array, Null, Object, String};
    let named = match value {
        None | Some(Null) => return Ok(None),
        Some(String(source)) => return Ok(Some(source.clone())),
        Some(Array(several)) => {
            let default = several.iter().find(|one| one.get("name").is_some_and(|name| name == "default"));
            default.and_then(|one| one.get("template"))
        }
        Some(Object(several)) => several.get("default"),
        Some(_) => None,
    };
    let source = named.and_then(serde_json::Value::as_str).map(str::to_owned);
    source.map(Some).ok_or_else(|| {
        format!(
            "has chat_template in another form; give one text, several with the name \"default\" among them, or a \
             {PLAIN}"
        )
    })
}

fn problem(path: &Path, message: String) -> ModelError {
    ModelError::Tokenizer { origin: path.display().to_string(), message }
}

/// What is wrong, and in which line.
fn describe(error: &Error) -> String {
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let line = error.line().map(|line| format!(" (line {line} of the template)")).unwrap_or_default();
    let date = if what.contains("strftime_now") {
        "; the date is not available, as prompts would depend on the day: give a template without it"
    } else {
        ""
    };
    format!("{what}{line}{date}")
}

/// `raise_exception(message)`.
fn refuse(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// Prints as Python does.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Bool => Ok(out.write_str(if value.is_true() { "True" } else { "False" })?),
        _ => minijinja::escape_formatter(out, state, value),
    }
}

/// `tojson`, with the spaces of Python's `json.dumps(…, ensure_ascii=False)`.
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut json = Vec::new();
    let written = match indent {
        Some(indent) => {
            let indent = vec![b' '; indent];
            value.serialize(&mut Serializer::with_formatter(&mut json, PrettyFormatter::with_indent(&indent)))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut json, Spaced)),
    };
    let problem = |e: String| Error::new(ErrorKind::BadSerialization, e);
    written.map_err(|e| problem(e.to_string()))?;
    String::from_utf8(json).map(Value::from).map_err(|e| problem(e.to_string()))
}

/// JSON in one line, with a space after `,` and `:`.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> std::io::Result<()> {
        out.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> std::io::Result<()> {
        out.write_all(b": ")
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn turns(turns: &[(&str, &str)]) -> Vec<Message> {
        turns.iter().map(|&(role, content)| Message::new(role, content)).collect()
    }

    fn tokens() -> BTreeMap<String, serde_json::Value> {
        BTreeMap::from([("bos_token".to_owned(), json!("<s>")), ("eos_token".to_owned(), json!("</s>"))])
    }

    fn render(source: &str, messages: &[(&str, &str)], options: &ChatOptions) -> Result<String, String> {
        ChatTemplate::compile(source, tokens())?.render(&turns(messages), options)
    }

    /// ChatML; thoughts of earlier answers go, and an empty thought can be asked for.
    const THINKING: &str = "
        {%- set ns = namespace(last=-1) %}
        {%- for turn in messages[::-1] %}
            {%- if ns.last < 0 and turn.role == 'user' %}
                {%- set ns.last = messages|length - loop.index %}
            {%- endif %}
        {%- endfor %}
        {%- for turn in messages %}
            {%- set text = turn.content %}
            {%- if '</think>' in text and loop.index0 < ns.last %}
                {%- set text = text.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
            {{- '<|im_start|>' + turn.role + '\\n' + text + '<|im_end|>\\n' }}
        {%- endfor %}
        {%- if add_generation_prompt %}
            {{- '<|im_start|>assistant\\n' }}
            {%- if enable_thinking is defined and enable_thinking is false %}
                {{- '<think>\\n\\n</think>\\n\\n' }}
            {%- endif %}
        {%- endif %}\n";

    #[test]
    fn options_and_earlier_thoughts_decide_about_the_prompt() {
        let question = [("user", "Hi")];
        let open = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n";
        assert_eq!(render(THINKING, &question, &ChatOptions::answer()).unwrap(), open);
        let options = ChatOptions::answer().with("enable_thinking", true);
        assert_eq!(render(THINKING, &question, &options).unwrap(), open);
        let options = ChatOptions::answer().with("enable_thinking", false);
        assert_eq!(render(THINKING, &question, &options).unwrap(), format!("{open}<think>\n\n</think>\n\n"));
        let long = [
            ("user", "a"),
            ("assistant", "<think>\nhm\n</think>\n\nb"),
            ("user", "c"),
            ("assistant", "<think></think>d"),
        ];
        assert_eq!(
            render(THINKING, &long, &ChatOptions::default()).unwrap(),
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n<|im_start|>user\nc<|im_end|>\n\
             <|im_start|>assistant\n<think></think>d<|im_end|>\n"
        );
    }

    #[test]
    fn blocks_are_trimmed_and_values_are_printed_as_in_python() {
        let source = "{% for turn in messages %}\n  {% if turn.content == '' %}{% continue %}{% endif %}\n\
                      {{ bos_token }}{{ turn|tojson }}{{ add_generation_prompt }}{{ tools }}{{ turn.name }}\n\
                      {% endfor %}\nend\n";
        let got = render(source, &[("user", ""), ("user", "<\"é\">")], &ChatOptions::default()).unwrap();
        assert_eq!(got, "<s>{\"role\": \"user\", \"content\": \"<\\\"é\\\">\"}FalseNone\nend");
        let options = ChatOptions::default().with("x", json!({"b": [1, 2.5], "a": []}));
        let got = render("{{ x|tojson }}{{ x|tojson(indent=1) }}", &[], &options).unwrap();
        assert_eq!(got, "{\"b\": [1, 2.5], \"a\": []}{\n \"b\": [\n  1,\n  2.5\n ],\n \"a\": []\n}");
    }

    #[test]
    fn templates_refuse_and_break_with_a_reason() {
        let source = "{% if messages|length > 1 %}{{ raise_exception('one turn only') }}{% endif %}fine";
        assert_eq!(render(source, &[("user", "a")], &ChatOptions::answer()).unwrap(), "fine");
        let error = render(source, &[("user", "a"), ("user", "b")], &ChatOptions::answer()).unwrap_err();
        assert!(error.contains("makes no prompt of this: one turn only (line 1"), "{error}");
        let error = render("{% if %}", &[], &ChatOptions::answer()).unwrap_err();
        assert!(error.contains("cannot be compiled"), "{error}");
        let error = render("{{ strftime_now('%Y') }}", &[], &ChatOptions::answer()).unwrap_err();
        assert!(error.contains("the date is not available"), "{error}");
        let dated = "{% if strftime_now is defined %}now{% else %}{{ date_string }}{% endif %}";
        let options = ChatOptions::answer().with("date_string", "26 Jul 2024");
        assert_eq!(render(dated, &[], &options).unwrap(), "26 Jul 2024");
    }

    #[test]
    fn a_checkpoint_has_its_template_in_one_of_three_files() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
        let text = || {
            let template = ChatTemplate::open(dir.path())?;
            Ok::<_, ModelError>(template.map(|t| t.render(&[], &ChatOptions::default()).unwrap()))
        };
        assert_eq!(text().unwrap(), None);
        write(CONFIG, "{\"bos_token\": \"<b>\"}");
        assert_eq!(text().unwrap(), None);
        write(WRAPPED, "{\"chat_template\": \"wrapped\"}");
        assert_eq!(text().unwrap().unwrap(), "wrapped");
        let several = json!([{"name": "tools", "template": "no"}, {"name": "default", "template": "{{ bos_token }}"}]);
        write(CONFIG, &json!({"bos_token": {"content": "<b>"}, "chat_template": several}).to_string());
        assert_eq!(text().unwrap().unwrap(), "<b>");
        write(PLAIN, "plain {{ bos_token }}");
        assert_eq!(text().unwrap().unwrap(), "plain <b>");
        let files = ChatTemplate::open(dir.path()).unwrap().unwrap();
        let names: Vec<_> = files.files().iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
        assert_eq!(names, [PLAIN, CONFIG]);
        write(PLAIN, "{% for %}");
        let error = text().unwrap_err().to_string();
        assert!(error.contains("chat_template.jinja: has a chat template that cannot be compiled"), "{error}");
        std::fs::remove_file(dir.path().join(PLAIN)).unwrap();
        write(CONFIG, "{\"chat_template\": [{\"name\": \"tools\", \"template\": \"no\"}]}");
        let error = text().unwrap_err().to_string();
        assert!(error.contains("tokenizer_config.json: has chat_template in another form"), "{error}");
    }
}
