//! The seam between the model and what computes it.
//!
//! The model is written once over tensors. Every operation it uses is here, in two forms: [`Engine::Kernels`] runs the
//! fused f32 kernels of this crate on the CPU, bit-equal for any batch; [`Engine::Candle`] runs candle's own operations
//! and works on every device and type (CUDA in bf16), with norms, rotary positions and softmax in f32. Activations are
//! tensors of rank 2, `[rows, width]`, row-major.

use candle_core::{CpuStorage, DType, Device, Result, Storage, StorageRef, Tensor, bail};

use crate::checkpoint::Weights;
use crate::error::Loaded;
use crate::kernels::{self, Activation, Epilogue, Isa, PackedMatrix};

/// What computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The CPU kernels of this crate.
    Kernels(Isa),
    /// Candle's operations, on any device.
    Candle,
}

/// Where a model lives and what computes it.
#[derive(Debug, Clone)]
pub struct Place {
    /// What computes.
    pub engine: Engine,
    /// Where tensors are.
    pub device: Device,
    /// Type of weights and activations.
    pub dtype: DType,
}

impl Place {
    /// The CPU, with the kernels of this crate, in f32.
    pub fn cpu() -> Self {
        Self { engine: Engine::Kernels(Isa::detect()), device: Device::Cpu, dtype: DType::F32 }
    }

    /// Candle's operations on `device`.
    pub const fn candle(device: Device, dtype: DType) -> Self {
        Self { engine: Engine::Candle, device, dtype }
    }

    /// `[rows, width]` from values on the host.
    pub(crate) fn rows(&self, values: Vec<f32>, width: usize) -> Result<Tensor> {
        let rows = values.len() / width;
        Tensor::from_vec(values, (rows, width), &Device::Cpu)?.to_dtype(self.dtype)?.to_device(&self.device)
    }
}

/// The values of a tensor of rank 2 in host memory, rows `stride` apart.
pub(crate) struct HostRows<'a> {
    storage: StorageRef<'a>,
    offset: usize,
    /// Distance of rows.
    pub stride: usize,
}

impl<'a> HostRows<'a> {
    pub fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let (&[_, width], &[stride, step]) = (layout.dims(), layout.stride()) else {
            bail!("expected [rows, width], found {:?}", layout.dims());
        };
        if step != 1 && width != 1 {
            bail!("the values of a row must be adjacent");
        }
        if !matches!(&*storage, Storage::Cpu(CpuStorage::F32(_))) {
            bail!("expected f32 in host memory");
        }
        Ok(Self { offset: layout.start_offset(), storage, stride })
    }

    /// From the first value of the first row on.
    pub fn values(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.offset..],
            _ => &[],
        }
    }
}

/// Runs `f` on the adjacent values of a tensor in host memory.
fn on_host<R>(x: &Tensor, f: impl FnOnce(&[f32]) -> R) -> Result<R> {
    let x = x.contiguous()?;
    let rows = HostRows::of(&x)?;
    Ok(f(&rows.values()[..x.elem_count()]))
}

fn from_host(values: Vec<f32>, width: usize) -> Result<Tensor> {
    let rows = values.len() / width;
    Tensor::from_vec(values, (rows, width), &Device::Cpu)
}

/// Reads weights and puts them where the model lives.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loader<'a> {
    pub weights: &'a Weights,
    pub place: &'a Place,
}

impl Loader<'_> {
    /// A tensor as it is stored.
    pub fn tensor(&self, name: &str) -> Loaded<Tensor> {
        self.weights.tensor(name, self.place.dtype, &self.place.device)
    }

    /// One linear layer with the outputs of all `names`, one after the other: `NAME.weight`, and `NAME.bias` if `bias`.
    pub fn linear(&self, names: &[String], bias: bool) -> Loaded<Linear> {
        let all = |suffix: &str| -> Loaded<Tensor> {
            let parts: Vec<Tensor> =
                names.iter().map(|n| self.tensor(&format!("{n}.{suffix}"))).collect::<Loaded<_>>()?;
            Ok(Tensor::cat(&parts, 0)?)
        };
        let bias = if bias { Some(all("bias")?) } else { None };
        Ok(Linear::new(self.place, &all("weight")?, bias)?)
    }

    /// A layer norm: `NAME.weight` and `NAME.bias`.
    pub fn layer_norm(&self, name: &str, eps: f32) -> Loaded<LayerNorm> {
        let part = |suffix: &str| Norm::new(self.place, self.weights.values(&format!("{name}.{suffix}"))?);
        Ok(LayerNorm { weight: part("weight")?, bias: part("bias")?, eps, place: self.place.clone() })
    }

    /// An RMS norm: `NAME.weight`.
    pub fn rms_norm(&self, name: &str, eps: f32) -> Loaded<RmsNorm> {
        let weight = Norm::new(self.place, self.weights.values(&format!("{name}.weight"))?)?;
        Ok(RmsNorm { weight, eps, place: self.place.clone() })
    }
}

/// A linear layer, `y = activation(x · Wᵀ + b) + residual`.
#[derive(Debug, Clone)]
pub struct Linear(Repr);

#[derive(Debug, Clone)]
enum Repr {
    Packed { isa: Isa, weight: PackedMatrix, bias: Option<Vec<f32>> },
    Dense { weight: Tensor, bias: Option<Tensor> },
}

impl Linear {
    /// From a weight `[outputs, inputs]` and a bias `[outputs]` where the model lives.
    pub(crate) fn new(place: &Place, weight: &Tensor, bias: Option<Tensor>) -> Result<Self> {
        let (outputs, inputs) = weight.dims2()?;
        Ok(Self(match place.engine {
            Engine::Kernels(isa) => {
                let bias = bias.map(|bias| bias.to_vec1()).transpose()?;
                let weight = on_host(weight, |w| PackedMatrix::from_output_rows(w, outputs, inputs))?;
                Repr::Packed { isa, weight, bias }
            }
            Engine::Candle => Repr::Dense { weight: weight.contiguous()?, bias },
        }))
    }

    /// `x · Wᵀ + b`.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.apply(x, Activation::None, None)
    }

    /// `activation(x · Wᵀ + b)`.
    pub fn activated(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        self.apply(x, activation, None)
    }

    /// `x · Wᵀ + b + residual`.
    pub fn onto(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.apply(x, Activation::None, Some(residual))
    }

    /// Bytes of the weights.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Repr::Packed { weight, .. } => weight.bytes(),
            Repr::Dense { weight, .. } => weight.elem_count() * weight.dtype().size_in_bytes(),
        }
    }

    fn apply(&self, x: &Tensor, activation: Activation, residual: Option<&Tensor>) -> Result<Tensor> {
        match &self.0 {
            Repr::Packed { isa, weight, bias } => {
                let (rows, width) = x.dims2()?;
                if width != weight.k() {
                    bail!("a linear layer of {} inputs was given {width}", weight.k());
                }
                let residual = residual.map(Tensor::contiguous).transpose()?;
                if let Some(r) = residual.as_ref().filter(|r| r.dims() != [rows, weight.n()]) {
                    bail!("a residual of {:?} for {rows} rows of {}", r.dims(), weight.n());
                }
                let residual = residual.as_ref().map(HostRows::of).transpose()?;
                let residual = residual.as_ref().map(|r| &r.values()[..rows * weight.n()]);
                let epilogue = Epilogue { bias: bias.as_deref(), activation, residual };
                let y = on_host(x, |x| kernels::gemm(*isa, x, rows, weight, epilogue))?;
                from_host(y, weight.n())
            }
            Repr::Dense { weight, bias } => {
                let mut y = x.contiguous()?.matmul(&weight.t()?)?;
                if let Some(bias) = bias {
                    y = y.broadcast_add(bias)?;
                }
                y = match activation {
                    Activation::None => y,
                    Activation::QuickGelu => (&y * candle_nn::ops::sigmoid(&(&y * 1.702)?)?)?,
                    Activation::GeluTanh => y.gelu()?,
                    Activation::Gelu => y.gelu_erf()?,
                };
                residual.map_or(Ok(y.clone()), |residual| residual + &y)
            }
        }
    }
}

/// A vector of weights of a norm: on the host for the kernels, in f32 on the device for candle.
#[derive(Debug, Clone)]
struct Norm {
    host: Vec<f32>,
    tensor: Tensor,
}

impl Norm {
    fn new(place: &Place, host: Vec<f32>) -> Loaded<Self> {
        let tensor = Tensor::from_slice(&host, host.len(), &place.device)?;
        Ok(Self { host, tensor })
    }
}

/// A layer norm over the width.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Norm,
    bias: Norm,
    eps: f32,
    place: Place,
}

impl LayerNorm {
    /// Normalises every row.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, width) = x.dims2()?;
        if width != self.weight.host.len() {
            bail!("a layer norm of width {} was given {width}", self.weight.host.len());
        }
        match self.place.engine {
            Engine::Kernels(isa) => {
                let y = on_host(x, |x| kernels::layer_norm(isa, x, &self.weight.host, &self.bias.host, self.eps))?;
                from_host(y, width)
            }
            Engine::Candle => {
                let x = x.to_dtype(DType::F32)?.contiguous()?;
                candle_nn::ops::layer_norm(&x, &self.weight.tensor, &self.bias.tensor, self.eps)?
                    .to_dtype(self.place.dtype)
            }
        }
    }
}

/// An RMS norm over the width.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Norm,
    eps: f32,
    place: Place,
}

impl RmsNorm {
    /// Normalises every row.
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let (_, width) = x.dims2()?;
        if width != self.weight.host.len() {
            bail!("an RMS norm of width {} was given {width}", self.weight.host.len());
        }
        match self.place.engine {
            Engine::Kernels(isa) => {
                from_host(on_host(x, |x| kernels::rms_norm(isa, x, &self.weight.host, self.eps))?, width)
            }
            Engine::Candle => {
                let x = x.to_dtype(DType::F32)?.contiguous()?;
                candle_nn::ops::rms_norm(&x, &self.weight.tensor, self.eps)?.to_dtype(self.place.dtype)
            }
        }
    }

    /// For the kernel that normalises heads while it rotates them.
    pub(crate) fn of_heads(&self) -> kernels::RmsNormOf<'_> {
        kernels::RmsNormOf { weight: &self.weight.host, eps: self.eps }
    }
}

/// `silu(gate) · up` of rows `[gate, up]`.
pub fn silu_mul(engine: Engine, x: &Tensor) -> Result<Tensor> {
    let width = x.dims2()?.1 / 2;
    match engine {
        Engine::Kernels(isa) => from_host(on_host(x, |x| kernels::silu_mul(isa, x, width))?, width),
        Engine::Candle => x.narrow(1, 0, width)?.silu()?.mul(&x.narrow(1, width, width)?),
    }
}

/// `x` plus the rows of all `tables`, one below the other.
pub fn add_tables(engine: Engine, x: &Tensor, tables: &[Tensor]) -> Result<Tensor> {
    let table = Tensor::cat(tables, 0)?;
    match engine {
        Engine::Kernels(_) => {
            let sum = on_host(x, |x| on_host(&table, |t| kernels::add_rows(x, t)))??;
            from_host(sum, x.dims2()?.1)
        }
        Engine::Candle => x + table,
    }
}

/// Token embeddings.
#[derive(Debug, Clone)]
pub struct Embedding(Tensor);

impl Embedding {
    /// From `[vocab, width]`.
    pub fn new(table: Tensor) -> Self {
        Self(table)
    }

    /// `[ids, width]`.
    pub fn forward(&self, ids: &[u32]) -> Result<Tensor> {
        let ids = Tensor::from_slice(ids, ids.len(), self.0.device())?;
        self.0.index_select(&ids, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(rows: usize, width: usize) -> Tensor {
        Tensor::randn(0.0_f32, 1.0, (rows, width), &Device::Cpu).unwrap()
    }

    fn close(a: &Tensor, b: &Tensor) {
        assert_eq!(a.dims(), b.dims());
        let gap = (a - b).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(gap < 2e-5, "{gap}");
    }

    #[test]
    fn both_engines_agree_on_every_operation() {
        let (cpu, candle) = (Place::cpu(), Place::candle(Device::Cpu, DType::F32));
        let (x, weight) = (noise(37, 40), noise(24, 40));
        let bias = noise(1, 24).flatten_all().unwrap();
        let residual = noise(37, 24);
        let layers = [&cpu, &candle].map(|place| Linear::new(place, &weight, Some(bias.clone())).unwrap());
        for activation in [Activation::None, Activation::QuickGelu, Activation::GeluTanh, Activation::Gelu] {
            let [a, b] = [0, 1].map(|i| layers[i].apply(&x, activation, Some(&residual)).unwrap());
            close(&a, &b);
        }
        let [a, b] = [&cpu, &candle].map(|place| {
            let vector = |i: u8| Norm::new(place, vec![f32::from(i); 40]).unwrap();
            let layer = LayerNorm { weight: vector(2), bias: vector(1), eps: 1e-5, place: place.clone() };
            let rms = RmsNorm { weight: vector(3), eps: 1e-5, place: place.clone() };
            rms.forward(&layer.forward(&x).unwrap()).unwrap()
        });
        close(&a, &b);
        let [a, b] = [cpu.engine, candle.engine].map(|engine| {
            let y = silu_mul(engine, &x).unwrap();
            add_tables(engine, &y, &[noise(0, 20), y.clone()]).unwrap()
        });
        close(&a, &b);
    }

    #[test]
    fn rows_apart_are_read_as_rows() {
        let x = noise(5, 12);
        let part = x.narrow(1, 4, 3).unwrap();
        let rows = HostRows::of(&part).unwrap();
        assert_eq!(rows.stride, 12);
        assert_eq!(rows.values()[12], x.to_vec2::<f32>().unwrap()[1][4]);
        assert!(HostRows::of(&x.t().unwrap()).is_err());
    }
}
