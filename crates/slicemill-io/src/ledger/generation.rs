//! Freezing inputs.

use futures::stream::BoxStream;

use super::layout::SUCCESS;
use super::{Generation, Ledger, json};
use crate::{FrozenInputs, InputEntry, IoError, IoErrorKind};

impl Ledger {
    /// The generations frozen so far, in order.
    pub async fn generations(&self) -> Result<Vec<Generation>, IoError> {
        let mut generations = Vec::new();
        while let Some(generation) = self.find_json(&self.layout.generation(count(&generations))).await? {
            generations.push(generation);
        }
        Ok(generations)
    }

    /// Freezes the next generation: writes its inputs, then its record. Takes `_SUCCESS` away when there is one.
    /// Shard numbers continue after the last generation's.
    pub async fn freeze(
        &self,
        entries: BoxStream<'static, Result<InputEntry, IoError>>,
        chunk_rows: u32,
        shard_chunks: u32,
    ) -> Result<Generation, IoError> {
        let number = count(&self.generations().await?);
        let inputs = self.write_inputs(number, entries, chunk_rows, None).await?;
        self.record_inputs(inputs, shard_chunks).await
    }

    /// The first half of [`freeze`](Self::freeze): writes the inputs of generation `number`, which do not stand yet. The
    /// number is that of the generation the caller compared them for: another process may have frozen it by now.
    /// Processes that freeze at the same time name themselves in `writer`, so that none replaces another's list.
    pub async fn write_inputs(
        &self,
        number: u32,
        entries: BoxStream<'static, Result<InputEntry, IoError>>,
        chunk_rows: u32,
        writer: Option<&str>,
    ) -> Result<NewInputs, IoError> {
        if chunk_rows == 0 {
            return Err(IoError::fatal(IoErrorKind::Invalid, "a chunk of 0 rows is not possible"));
        }
        if let Some(pass) = self.retries().await?.iter().find(|pass| !pass.done) {
            return Err(self.incomplete(&format!("retry pass {}", pass.number)));
        }
        let file = self.layout.inputs(number, writer);
        let inputs = FrozenInputs::write(&self.output, &file, entries, chunk_rows).await?;
        Ok(NewInputs { number, file: writer.map(|_| file), inputs, chunk_rows })
    }

    /// The second half: makes the inputs stand. Where another process was first, its list stands when it is the same
    /// one, and a different one is an error.
    pub async fn record_inputs(&self, new: NewInputs, shard_chunks: u32) -> Result<Generation, IoError> {
        if shard_chunks == 0 {
            return Err(IoError::fatal(IoErrorKind::Invalid, "a shard of 0 chunks is not possible"));
        }
        let before = self.generations().await?;
        let shard_first = before
            .iter()
            .take_while(|generation| generation.number < new.number)
            .last()
            .map_or(0, |last| last.shards().end);
        let generation = Generation {
            number: new.number,
            rows: new.inputs.rows(),
            digest: new.inputs.digest().to_owned(),
            chunk_rows: new.chunk_rows,
            shard_chunks,
            shard_first,
            file: new.file,
        };
        let standing = before.into_iter().nth(new.number as usize);
        if standing.is_none() {
            self.output.delete(SUCCESS).await?;
            match self.output.put_if_absent(&self.layout.generation(generation.number), json(&generation)?).await {
                Ok(()) => return Ok(generation),
                Err(error) if error.kind == IoErrorKind::Conflict && generation.file.is_some() => {}
                Err(error) => return Err(error),
            }
        }
        let standing = match standing {
            Some(standing) => standing,
            None => self.read_json(&self.layout.generation(generation.number)).await?,
        };
        self.take_over(generation, standing).await
    }

    /// The generation that another process froze in the meantime, if it is the same one.
    async fn take_over(&self, ours: Generation, standing: Generation) -> Result<Generation, IoError> {
        if let Some(file) = ours.file.as_ref().filter(|file| standing.file.as_ref() != Some(file)) {
            self.output.delete(file).await?;
        }
        if (Generation { file: None, ..ours }) == (Generation { file: None, ..standing.clone() }) {
            return Ok(standing);
        }
        let message = format!(
            "another process has frozen other inputs in {}; the inputs changed while the job was started, or it was \
             started with other flags: start all parts again with the same flags",
            self.output.url()
        );
        Err(IoError::fatal(IoErrorKind::Conflict, message))
    }

    /// The frozen inputs of a generation. Checked against the generation's record.
    pub async fn inputs(&self, generation: &Generation) -> Result<FrozenInputs, IoError> {
        let name = generation.file.clone().unwrap_or_else(|| self.layout.inputs(generation.number, None));
        let inputs = FrozenInputs::open(&self.output, &name).await?;
        if inputs.digest() != generation.digest || inputs.rows() != generation.rows {
            let message = format!("{} is not the list that was frozen", self.output.show(&name));
            return Err(IoError::fatal(IoErrorKind::Corrupt, message));
        }
        Ok(inputs)
    }
}

/// Inputs that are written and do not stand yet.
#[derive(Debug)]
pub struct NewInputs {
    number: u32,
    /// Its name when it is not the usual one.
    file: Option<String>,
    inputs: FrozenInputs,
    chunk_rows: u32,
}

impl NewInputs {
    /// Number of inputs.
    pub const fn rows(&self) -> u64 {
        self.inputs.rows()
    }
}

fn count(generations: &[Generation]) -> u32 {
    u32::try_from(generations.len()).unwrap_or(u32::MAX)
}
