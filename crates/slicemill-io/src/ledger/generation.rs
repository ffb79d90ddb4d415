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
        if chunk_rows == 0 || shard_chunks == 0 {
            let message = format!("a chunk of {chunk_rows} rows and a shard of {shard_chunks} chunks are not possible");
            return Err(IoError::fatal(IoErrorKind::Invalid, message));
        }
        if let Some(pass) = self.retries().await?.iter().find(|pass| !pass.done) {
            return Err(self.incomplete(&format!("retry pass {}", pass.number)));
        }
        let before = self.generations().await?;
        let number = count(&before);
        let inputs = FrozenInputs::write(&self.output, &self.layout.inputs(number), entries, chunk_rows).await?;
        let generation = Generation {
            number,
            rows: inputs.rows(),
            digest: inputs.digest().to_owned(),
            chunk_rows,
            shard_chunks,
            shard_first: before.last().map_or(0, |last| last.shards().end),
        };
        self.output.delete(SUCCESS).await?;
        self.output.put_if_absent(&self.layout.generation(number), json(&generation)?).await?;
        Ok(generation)
    }

    /// The frozen inputs of a generation. Checked against the generation's record.
    pub async fn inputs(&self, generation: &Generation) -> Result<FrozenInputs, IoError> {
        let name = self.layout.inputs(generation.number);
        let inputs = FrozenInputs::open(&self.output, &name).await?;
        if inputs.digest() != generation.digest || inputs.rows() != generation.rows {
            let message = format!("{} is not the list that was frozen", self.output.show(&name));
            return Err(IoError::fatal(IoErrorKind::Corrupt, message));
        }
        Ok(inputs)
    }
}

fn count(generations: &[Generation]) -> u32 {
    u32::try_from(generations.len()).unwrap_or(u32::MAX)
}
