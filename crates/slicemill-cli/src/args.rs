//! The command line: typed flags, one struct per verb.
//!
//! Flags that say what a job *is* become keys of the same job document a TOML file holds ([`JobFlags::document`]), so
//! both go through one validation. Flags that say how *this run* behaves ([`RunFlags`]) never enter the job.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// Text printed below `--help`.
const AFTER_HELP: &str = "\
Exit codes:
  0    done, every row is ok or skipped
  1    failed; the message says why and what to do
  2    the command line or the job is wrong; nothing was done
  3    done, but some rows failed: see OUT/failed and `slicemill retry OUT`
  4    `verify` found something wrong
  5    OUT holds a different job; nothing was done
  130  interrupted; run the same command again to resume";

/// LLaVA-UHD over image datasets of any size: captions, answers and visual tokens as Parquet.
#[derive(Debug, Parser)]
#[command(name = "slicemill", version, about, after_help = AFTER_HELP, max_term_width = 110)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
    /// Output and logging.
    #[command(flatten)]
    pub output: OutputFlags,
}

/// Flags of every verb.
#[derive(Debug, Clone, Args)]
pub struct OutputFlags {
    /// Say only what went wrong.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Say more; twice for everything.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Form of log lines on standard error.
    #[arg(long, global = true, value_enum, default_value = "text")]
    pub log_format: LogFormat,
    /// Progress on standard error: a bar on a terminal, else a line every few seconds.
    #[arg(long, global = true, value_enum, default_value = "auto")]
    pub progress: ProgressMode,
    /// How a store is reached, as `s3.endpoint=http://127.0.0.1:9000`; may be repeated, never stored or shown
    #[arg(long = "store-option", global = true, value_name = "KEY=VALUE")]
    pub store_options: Vec<String>,
}

/// Form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ProgressMode {
    /// A bar on a terminal, lines elsewhere.
    Auto,
    /// A bar.
    Bar,
    /// A line every few seconds.
    Lines,
    /// Nothing.
    Off,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Caption images: one row per image in OUT/captions
    Caption(CaptionArgs),
    /// Answer questions about images: one row per image and question in OUT/answers
    Ask(AskArgs),
    /// Write the visual tokens of images: one row per image in OUT/tokens
    Encode(EncodeArgs),
    /// Run a job file
    Run(RunArgs),
    /// Say what a job will take, from image headers alone
    Plan(PlanArgs),
    /// Re-read an output and prove that nothing is lost, doubled or miscounted
    Verify(OutArgs),
    /// Run the failed rows of an output again
    Retry(RetryArgs),
    /// Summarise an output
    Report(ReportArgs),
    /// Query an output with SQL; tables: captions, answers, tokens, failed, skipped, timings
    Sql(SqlArgs),
    /// Write captions as text files beside their images
    Sidecars(SidecarArgs),
    /// Print the versioned schemas of the output files
    Schema(SchemaArgs),
    /// Write exactly what the model will see of images, before normalisation
    Slices(SlicesArgs),
    /// Compare the rows of two outputs: equal texts, cosine of visual tokens
    Compare(CompareArgs),
    /// Look at a checkpoint
    #[command(subcommand)]
    Model(ModelVerb),
    /// Check this machine, the embedded model and the devices
    Doctor(DoctorArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

/// Flags that choose among the inputs.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Inputs")]
pub struct InputFlags {
    /// Columns of the input to carry into the output, as input_<name>
    #[arg(long, value_name = "COLUMNS", value_delimiter = ',')]
    pub keep: Vec<String>,
    /// Take rows for which this SQL condition is true, over plan columns (width, height, format, slices,
    /// visual_tokens, ...) and columns of the input; the others are skipped
    #[arg(long = "where", value_name = "SQL")]
    pub filter: Option<String>,
    /// Take a share of the inputs, as 1%; always the same ones
    #[arg(long, value_name = "SHARE")]
    pub sample: Option<String>,
    /// Take this many inputs, the first in order
    #[arg(long, value_name = "N")]
    pub limit: Option<u64>,
    /// Column of a table or list with the images or their locations
    #[arg(long, value_name = "NAME")]
    pub image_column: Option<String>,
    /// Column of a table or list that names its rows; their numbers do otherwise
    #[arg(long, value_name = "NAME")]
    pub key_column: Option<String>,
    /// Folder that local files named by a list may lie in; the list's own folder otherwise
    #[arg(long, value_name = "DIR")]
    pub root: Option<String>,
}

/// Flags that say what a job is.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "The job")]
pub struct JobFlags {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub input: InputFlags,
    /// `embedded`, `null` (decodes and plans, says nothing), the directory of a checkpoint, or org/name on the hub
    #[arg(long, value_name = "MODEL")]
    pub model: Option<String>,
    /// Rounding of LLaVA-UHD v1's windows; f16 is what its released evaluation does [f32, f16]
    #[arg(long, value_name = "TYPE")]
    pub windows: Option<String>,
    /// Slicing policy [llava-uhd, llava-uhd-raw, llava-uhd-paper, llava-uhd-v2, minicpm-v, pad-square, fixed-2x2, whole]
    #[arg(long, value_name = "NAME")]
    pub policy: Option<String>,
    /// Side of a slice in pixels
    #[arg(long, value_name = "PIXELS")]
    pub side: Option<u32>,
    /// Patch size in pixels
    #[arg(long, value_name = "PIXELS")]
    pub patch: Option<u32>,
    /// Most slices per image, without the overview
    #[arg(long, value_name = "N")]
    pub max_slices: Option<u32>,
    /// EXIF orientation [apply, ignore]
    #[arg(long, value_name = "RULE")]
    pub orientation: Option<String>,
    /// Background of transparent pixels [white, black, drop]
    #[arg(long, value_name = "RULE")]
    pub alpha: Option<String>,
    /// Largest accepted image, width × height
    #[arg(long, value_name = "PIXELS")]
    pub pixels_max: Option<u64>,
    /// Take images that end early as far as they go, with `truncated` set, in place of failing them
    #[arg(long)]
    pub allow_truncated: bool,
    /// Extra columns, as `+token_ids`
    #[arg(long, value_name = "COLUMNS", allow_hyphen_values = true, value_delimiter = ',')]
    pub columns: Vec<String>,
    /// Input rows per chunk, the unit of resume
    #[arg(long, value_name = "N")]
    pub chunk_rows: Option<u64>,
    /// Input rows per output file
    #[arg(long, value_name = "N")]
    pub shard_rows: Option<u64>,
    /// Size that output files are to reach, as 512MiB
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
    pub shard_bytes: Option<u64>,
}

/// Flags of text generation.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Generation")]
pub struct GenerationFlags {
    /// Cap on output tokens
    #[arg(long, value_name = "N")]
    pub max_new_tokens: Option<u32>,
    /// 0 is greedy
    #[arg(long, value_name = "T")]
    pub temperature: Option<f64>,
    /// Sample from the k most likely tokens
    #[arg(long, value_name = "K")]
    pub top_k: Option<u32>,
    /// Sample from the smallest set of tokens that reaches this probability
    #[arg(long, value_name = "P")]
    pub top_p: Option<f64>,
    /// Above 1, tokens already produced become less likely
    #[arg(long, value_name = "R")]
    pub repetition_penalty: Option<f64>,
    /// Beams of a beam search; 1 is none
    #[arg(long, value_name = "N")]
    pub num_beams: Option<u32>,
    /// Beam search: above 0 long answers gain, below 0 short ones [1]
    #[arg(long, value_name = "R", allow_hyphen_values = true)]
    pub length_penalty: Option<f64>,
    /// Beam search: end it when as many beams have finished as there are beams
    #[arg(long)]
    pub early_stopping: bool,
    /// Seed of sampling; each row derives its own
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// Flags that say how this run behaves; they never change the output.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "This run")]
pub struct RunFlags {
    /// Devices, as `cpu`, `cpu:0,cpu:1` or `cuda:0,cuda:1`
    #[arg(long, value_name = "LIST")]
    pub devices: Option<String>,
    /// Views (slices and overviews) encoded together
    #[arg(long, value_name = "VIEWS")]
    pub batch: Option<u32>,
    /// Sequences decoded together
    #[arg(long, value_name = "N")]
    pub sequences: Option<u32>,
    /// Threads that decode and slice images
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// Host memory for bytes and pixels in flight, as `512M` or `2G`
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
    pub memory: Option<u64>,
    /// Objects read at the same time
    #[arg(long, value_name = "N")]
    pub fetches: Option<usize>,
    /// Stop when more rows have failed, as 100 or 5% (of at least 100 rows); what is done stays
    #[arg(long, value_name = "N|SHARE", allow_hyphen_values = true)]
    pub max_failed: Option<String>,
    /// A device that is silent for longer counts as hung and is started anew, as 10m; 0 waits for ever
    #[arg(long, value_name = "TIME")]
    pub device_timeout: Option<String>,
    /// Folder for what is unpacked of compressed archives and tables [the system's temporary folder]
    #[arg(long, value_name = "DIR")]
    pub spool: Option<PathBuf>,
    /// Most bytes there at once, as 64G
    #[arg(long, value_name = "SIZE", value_parser = crate::size::parse)]
    pub spool_bytes: Option<u64>,
    /// Serve counters for Prometheus at http://ADDRESS/metrics, as 127.0.0.1:9400
    #[arg(long, value_name = "ADDRESS")]
    pub metrics: Option<std::net::SocketAddr>,
    /// Write the same counters to this file every few seconds
    #[arg(long, value_name = "FILE")]
    pub metrics_file: Option<PathBuf>,
}

/// Flags about what an output already holds, and who else writes to it.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "This run")]
pub struct ShareFlags {
    /// Add new inputs to an output that exists
    #[arg(long)]
    pub extend: bool,
    /// Do the k-th of n parts of the job, as 3/8; run all n, at once or one after the other, with the same flags
    #[arg(long = "shard", value_name = "K/N")]
    pub part: Option<String>,
}

/// `caption`
#[derive(Debug, Args)]
pub struct CaptionArgs {
    /// Folders (read recursively), images, tar archives, Parquet files, lists (JSONL, CSV), globs; paths or URLs
    /// (s3://, gs://, az://, http://, https://); `-` reads a list from standard input
    #[arg(required = true)]
    pub inputs: Vec<String>,
    /// Folder of the output, a path or URL (s3://, gs://, az://)
    #[arg(short, long, value_name = "OUT")]
    pub output: String,
    /// What to ask of each image
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub share: ShareFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub job: JobFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub generation: GenerationFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub run: RunFlags,
}

/// `ask`
#[derive(Debug, Args)]
pub struct AskArgs {
    /// Folders (read recursively), images, tar archives, Parquet files, lists (JSONL, CSV), globs; paths or URLs
    /// (s3://, gs://, az://, http://, https://); `-` reads a list from standard input
    #[arg(required = true)]
    pub inputs: Vec<String>,
    /// Folder of the output, a path or URL (s3://, gs://, az://)
    #[arg(short, long, value_name = "OUT")]
    pub output: String,
    /// A question about every image; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub ask: Vec<String>,
    /// Questions per image: jsonl, csv or parquet with columns key and question
    #[arg(long, value_name = "FILE")]
    pub questions: Option<String>,
    /// Text around each question, with {question}
    #[arg(long, value_name = "TEXT")]
    pub template: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub share: ShareFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub job: JobFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub generation: GenerationFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub run: RunFlags,
}

/// `encode`
#[derive(Debug, Args)]
pub struct EncodeArgs {
    /// Folders (read recursively), images, tar archives, Parquet files, lists (JSONL, CSV), globs; paths or URLs
    /// (s3://, gs://, az://, http://, https://); `-` reads a list from standard input
    #[arg(required = true)]
    pub inputs: Vec<String>,
    /// Folder of the output, a path or URL (s3://, gs://, az://)
    #[arg(short, long, value_name = "OUT")]
    pub output: String,
    /// Element type of the tokens [f32, f16]
    #[arg(long, value_name = "TYPE")]
    pub dtype: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub share: ShareFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub job: JobFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub run: RunFlags,
}

/// `run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The job file
    pub job: PathBuf,
    /// Change a key of the job, as `generation.max_new_tokens=64`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub share: ShareFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub run: RunFlags,
}

/// Form of printed results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Text,
    /// JSON.
    Json,
    /// Comma-separated values.
    Csv,
}

/// `plan`
#[derive(Debug, Args)]
pub struct PlanArgs {
    /// What `caption` takes: folders, images, archives, tables, lists, globs
    #[arg(required_unless_present_any = ["sizes", "job_file"], conflicts_with_all = ["sizes", "job_file"])]
    pub inputs: Vec<String>,
    /// Plan the sizes of a CSV file with columns width,height instead
    #[arg(long, value_name = "FILE.csv", conflicts_with = "job_file")]
    pub sizes: Option<PathBuf>,
    /// Plan a job file
    #[arg(long = "job", value_name = "JOB.toml")]
    pub job_file: Option<PathBuf>,
    /// Change a key of the job file; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "job_file")]
    pub set: Vec<String>,
    /// With --sizes: visual tokens and compute of every size for --model, of which config.json is enough
    #[arg(long, requires = "sizes")]
    pub compute: bool,
    /// With --compute: what is counted
    #[arg(long, value_enum, default_value = "run", requires = "compute")]
    pub recipe: Recipe,
    /// With --compute: tokens of text in a prompt
    #[arg(long, value_name = "N", default_value_t = 0, requires = "compute")]
    pub text_tokens: u64,
    /// Run this many images to measure a rate and estimate the time
    #[arg(long, value_name = "N")]
    pub measure: Option<u64>,
    /// Form of the result; csv goes with --sizes
    #[arg(long, value_enum)]
    pub format: Option<Format>,
    /// What to ask of each image
    #[arg(long, value_name = "TEXT")]
    pub prompt: Option<String>,
    /// A question about every image; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub ask: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub job: JobFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub generation: GenerationFlags,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub run: RunFlags,
}

/// Verbs that take an output.
#[derive(Debug, Args)]
pub struct OutArgs {
    /// Folder of the output, a path or URL
    pub out: String,
    /// Form of the result
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `retry`
#[derive(Debug, Args)]
pub struct RetryArgs {
    /// Folder of the output, a path or URL
    pub out: String,
    /// Only rows of these classes, as `truncated,read_failed`
    #[arg(long, value_name = "CLASSES", value_delimiter = ',')]
    pub class: Vec<String>,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub run: RunFlags,
}

/// `report`
#[derive(Debug, Args)]
pub struct ReportArgs {
    /// Folder of the output, a path or URL
    pub out: String,
    /// Form of the result
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `sql`
#[derive(Debug, Args)]
pub struct SqlArgs {
    /// Folder of the output, a path or URL
    pub out: String,
    /// The query
    pub query: String,
    /// Form of the result
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `sidecars`
#[derive(Debug, Args)]
pub struct SidecarArgs {
    /// Folder of the output, a path or URL
    pub out: String,
    /// Folder that keys of rows are paths in, such as the one that was captioned
    pub folder: PathBuf,
    /// What stands in place of the images' endings
    #[arg(long, value_name = "TEXT", default_value = ".txt")]
    pub suffix: String,
    /// Write over files that hold another text
    #[arg(long)]
    pub replace: bool,
    /// Form of the result
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `schema`
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// Only this dataset [captions, answers, tokens, failed, skipped, timings]
    pub dataset: Option<String>,
}

/// `slices`
#[derive(Debug, Args)]
pub struct SlicesArgs {
    /// Image files
    #[arg(required = true)]
    pub images: Vec<PathBuf>,
    /// Folder for the pictures
    #[arg(short, long, value_name = "DIR")]
    pub output: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub job: JobFlags,
}

/// `compare`
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Folder of an output
    pub one: String,
    /// Folder of another output of the same kind
    pub other: String,
    /// Visual tokens are equal when their cosine is at least this
    #[arg(long, value_name = "COSINE", default_value_t = 0.999)]
    pub cosine_min: f64,
}

/// `doctor`
#[derive(Debug, Args)]
pub struct DoctorArgs {
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub run: RunFlags,
}

/// `model`
#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, made once")]
pub enum ModelVerb {
    /// Say what a checkpoint is and what it needs, without reading its weights
    Inspect(ModelInspectArgs),
    /// Load a checkpoint on every device and show it a drawn picture
    Check(ModelCheckArgs),
}

/// `model inspect`
#[derive(Debug, Args)]
pub struct ModelInspectArgs {
    /// The directory of a checkpoint, a config.json alone, org/name on the hub, or `embedded`
    pub model: String,
    /// Form of the result
    #[arg(long, value_enum, default_value = "text")]
    pub format: Format,
}

/// `model check`
#[derive(Debug, Args)]
pub struct ModelCheckArgs {
    /// The directory of a checkpoint, org/name on the hub, or `embedded`
    pub model: String,
    #[command(flatten)]
    #[allow(missing_docs, reason = "clap shows the group's own help")]
    pub run: RunFlags,
}

/// What is counted in a prefill.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Recipe {
    /// What slicemill runs.
    #[default]
    Run,
    /// What comes nearest to the LLaVA-UHD paper's table 2: logits at every position, every view a full square.
    Paper,
}

/// `completions`
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub shell: clap_complete::Shell,
}
