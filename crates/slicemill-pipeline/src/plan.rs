//! From bytes to what a row will cost, before any pixel is decoded. `slicemill plan` and the run share this path.

use std::sync::Arc;

use slicemill_core::{ErrorClass, Fate, Flops, RowError, Size, SlicePlan, Stage};
use slicemill_image::{Header, HeaderRead};

use crate::{AnnotateSpec, BackendFactory, InputRef, PlannedView, PromptItem, RowFilter};

/// Why a row cannot be planned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The row fails.
    #[error("{0}")]
    Row(RowError),
    /// The job ends.
    #[error("{0}")]
    Fatal(String),
}

impl From<RowError> for Fault {
    fn from(error: RowError) -> Self {
        Self::Row(error)
    }
}

/// The plan of one image with its prompts, and what it will cost.
#[derive(Debug, Clone, PartialEq)]
pub struct PlannedRow {
    /// What will be encoded.
    pub plan: Arc<SlicePlan>,
    /// Visual tokens, separators not included.
    pub visual_tokens: u32,
    /// Prompt tokens of every prompt, in order: text, separators and visual tokens. Empty for encode jobs.
    pub prompt_tokens: Vec<u32>,
    /// Compute of all prompts with output up to the cap; vision and projector run once.
    pub flops_max: Flops,
}

/// Plans an image of this size, after orientation, with these prompts.
///
/// # Errors
/// A row error when the policy rejects the size or a prompt does not fit the model's context (the first such prompt is
/// named); fatal when the model cannot count its prompt tokens.
pub fn planned_costs(
    size: Size,
    prompts: &[PromptItem],
    spec: &AnnotateSpec,
    factory: &dyn BackendFactory,
) -> Result<PlannedRow, Fault> {
    let card = factory.card();
    let rejected = |message: String| RowError::new(ErrorClass::PlanRejected, Stage::Plan, message);
    let plan = spec.policy.plan(size).map_err(|rejection| rejected(rejection.to_string()))?;
    let visual_tokens = plan.visual_tokens(card.token_rule);
    let visual_tokens = u32::try_from(visual_tokens)
        .map_err(|_| rejected(format!("{visual_tokens} visual tokens are more than any model takes")))?;
    let mut prompt_tokens = Vec::with_capacity(prompts.len());
    let mut flops_max = Flops {
        vision: card.shape.vision_flops(&plan),
        projector: card.shape.projector_flops(&plan),
        ..Flops::default()
    };
    for item in prompts {
        let tokens = count_prompt(item, &plan, spec, factory)?;
        // At least one token must fit behind the prompt.
        let room = card.context_tokens_max.saturating_sub(tokens);
        if room == 0 && card.context_tokens_max < u32::MAX {
            let message = format!(
                "the prompt has {tokens} tokens with its {visual_tokens} visual tokens, the model's context holds {}; \
                 use a shorter prompt or fewer slices (--max-slices)",
                card.context_tokens_max
            );
            return Err(question_error(item, ErrorClass::PromptTooLong, Stage::Plan, &message).into());
        }
        let output_max = u64::from(spec.generation.max_new_tokens.min(room));
        let prefill = card.shape.prefill_flops(u64::from(tokens));
        let decode = card.shape.beam_flops(spec.generation.num_beams, u64::from(tokens), output_max);
        flops_max.prefill = flops_max.prefill.saturating_add(prefill);
        flops_max.decode = flops_max.decode.saturating_add(decode);
        prompt_tokens.push(tokens);
    }
    Ok(PlannedRow { plan: Arc::new(plan), visual_tokens, prompt_tokens, flops_max })
}

fn count_prompt(
    item: &PromptItem,
    plan: &SlicePlan,
    spec: &AnnotateSpec,
    factory: &dyn BackendFactory,
) -> Result<u32, Fault> {
    factory.prompt_tokens(&spec.prompt(item), plan).map_err(|error| match error.fate {
        Fate::Row => Fault::Row(question_error(item, error.class, Stage::Plan, &error.message)),
        Fate::Transient | Fate::Fatal => Fault::Fatal(format!("prompt tokens cannot be counted: {error}")),
    })
}

/// A row error about one prompt, which names the question when there can be several.
pub(crate) fn question_error(item: &PromptItem, class: ErrorClass, stage: Stage, message: &str) -> RowError {
    match item.question_id {
        Some(id) => RowError::new(class, stage, format!("question {id} (\"{}\"): {message}", item.question)),
        None => RowError::new(class, stage, message),
    }
}

/// What the first look at an object's bytes gave.
#[derive(Debug, Clone, PartialEq)]
pub enum Inspected {
    /// An image with a plan.
    Planned {
        /// Its header.
        header: Header,
        /// Its plan and costs.
        row: PlannedRow,
    },
    /// Not an image of a known format, and its name does not say that it is an image, or not kept by the job's filter;
    /// the reason.
    Skipped(String),
    /// The header reaches further than the bytes at hand; never the answer when the whole object is at hand.
    NeedMore {
        /// Bytes from the start of the object that must be at hand for the next step.
        bytes: u64,
    },
}

/// Reads the header and plans: no pixel is decoded. `prefix` is the beginning, or all, of an object of `total_bytes`.
///
/// # Errors
/// A row error for an image that cannot be read or planned and for an object that is not an image though its key or
/// source ends like one; fatal as [`planned_costs`].
pub fn inspect(
    prefix: &[u8],
    total_bytes: u64,
    row: &InputRef,
    spec: &AnnotateSpec,
    factory: &dyn BackendFactory,
) -> Result<Inspected, Fault> {
    let named_image = [&row.key, &row.source].into_iter().find(|name| slicemill_image::has_image_extension(name));
    let name = named_image.unwrap_or(&row.key);
    let header = match slicemill_image::read_header_partial(prefix, total_bytes, name, &spec.image) {
        Ok(HeaderRead::Done(header)) => header,
        Ok(HeaderRead::NeedMore { bytes }) => return Ok(Inspected::NeedMore { bytes }),
        Err(error) if named_image.is_none() && is_unknown(error.class) => return Ok(Inspected::Skipped(error.message)),
        Err(error) => return Err(error.into()),
    };
    let size = header.oriented_size(spec.image.orientation);
    let row = planned_costs(size, &row.prompts, spec, factory)?;
    Ok(Inspected::Planned { header, row })
}

/// As [`inspect`]; an image that `filter` does not keep is skipped, and the reason is `where: ` and its condition.
///
/// # Errors
/// As [`inspect`]; a row error of class `bad_record` when the condition has no answer.
pub fn inspect_kept(
    prefix: &[u8],
    total_bytes: u64,
    row: &InputRef,
    spec: &AnnotateSpec,
    factory: &dyn BackendFactory,
    filter: Option<&dyn RowFilter>,
) -> Result<Inspected, Fault> {
    let inspected = inspect(prefix, total_bytes, row, spec, factory)?;
    let (Some(filter), Inspected::Planned { header, row: planned }) = (filter, &inspected) else {
        return Ok(inspected);
    };
    let plan = &planned.plan;
    let view = PlannedView {
        key: &row.key,
        source: &row.source,
        bytes: total_bytes,
        width: plan.image.width,
        height: plan.image.height,
        format: header.format.as_str(),
        orientation_applied: header.applied_orientation(spec.image.orientation).exif(),
        policy: &spec.policy.name,
        grid_cols: plan.grid.cols,
        grid_rows: plan.grid.rows,
        slices: plan.slices(),
        visual_tokens: planned.visual_tokens,
        columns: row.columns.as_deref(),
    };
    match filter.keep(&view) {
        Ok(true) => Ok(inspected),
        Ok(false) => Ok(Inspected::Skipped(format!("where: {}", filter.describe()))),
        Err(why) => {
            let message = format!("the condition `{}` has no answer: {why}", filter.describe());
            Err(RowError::new(ErrorClass::BadRecord, Stage::Plan, message).into())
        }
    }
}

/// Whether the first bytes are those of no format that can be decoded.
const fn is_unknown(class: ErrorClass) -> bool {
    matches!(class, ErrorClass::Empty | ErrorClass::NotAnImage | ErrorClass::UnsupportedFormat)
}
