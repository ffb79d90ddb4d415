//! Whether a checkpoint has the tensors that a model needs.

use safetensors::tensor::Dtype;

use super::Weights;
use crate::error::ModelError;
use crate::manifest::Manifest;

impl Weights {
    /// Checks that all tensors of `manifest` are there, with their shapes, in a type that can be read.
    ///
    /// # Errors
    /// One error that lists every tensor that does not fit, with what was expected and what was found.
    pub fn check(&self, manifest: &Manifest) -> Result<(), ModelError> {
        self.check_all(manifest, |_| false)
    }

    /// As [`Weights::check`]. Tensors that are not in `manifest` and of which `belongs` says that they are part of the
    /// model do not fit either: the model would leave them out and compute something else.
    ///
    /// # Errors
    /// One error that lists every tensor that does not fit, with what was expected and what was found.
    pub fn check_all(&self, manifest: &Manifest, belongs: impl Fn(&str) -> bool) -> Result<(), ModelError> {
        let mut problems: Vec<String> = manifest.iter().filter_map(|(name, shape)| self.misfit(name, shape)).collect();
        let mut unused = 0;
        for tensor in self.tensors().filter(|tensor| !manifest.contains_key(tensor.name)) {
            if belongs(tensor.name) {
                let (name, shape) = (tensor.name, tensor.shape);
                problems.push(format!("{name}: not expected, found {shape:?}"));
            } else {
                unused += 1;
            }
        }
        let lost = self.promised.iter().filter(|(name, _)| !manifest.contains_key(*name) && belongs(name));
        problems.extend(lost.map(|(name, file)| format!("{name}: not expected, and {file} does not hold it")));
        if !problems.is_empty() {
            return Err(ModelError::Tensors { origin: self.origin.clone(), problems });
        }
        if unused > 0 {
            tracing::debug!(origin = %self.origin, unused, "the checkpoint has tensors that the model does not use");
        }
        Ok(())
    }

    fn misfit(&self, name: &str, expected: &[usize]) -> Option<String> {
        let Some(tensor) = self.info(name) else {
            let promised = self.promised.get(name);
            let place = promised.map(|file| format!("; the index places it in {file}, which does not hold it"));
            return Some(format!("{name}: missing, expected {expected:?}{}", place.unwrap_or_default()));
        };
        if tensor.shape != expected {
            return Some(format!("{name}: expected {expected:?}, found {:?}", tensor.shape));
        }
        let readable = matches!(tensor.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16);
        (!readable).then(|| format!("{name}: expected F32, F16 or BF16, found {:?}", tensor.dtype))
    }
}
