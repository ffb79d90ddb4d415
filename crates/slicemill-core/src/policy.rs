//! Slicing policies as data: one table of eight rows, three overrides, and the limits that keep planning total.

use serde::{Deserialize, Serialize};

/// Which slice counts compete for the grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CandidateRule {
    /// N−1, N, N+1 without 1 and without counts above the maximum; N ≤ 1 is not sliced (July 2024 release, MiniCPM-V).
    Capped,
    /// N is capped first and widened after, so that one slice more than the maximum is possible; N = 1 competes as {1, 2} (March 2024 code).
    Widened,
}

/// How the image is divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Partition {
    /// The grid whose aspect is nearest to the image's.
    Adaptive(CandidateRule),
    /// Always this grid.
    Fixed {
        /// Columns.
        cols: u32,
        /// Rows.
        rows: u32,
    },
    /// Only the overview.
    None,
}

/// Rounding of a length to a multiple of the patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Downwards (LLaVA-UHD).
    Floor,
    /// To nearest, ties to even (MiniCPM-V; Python's `round`).
    HalfEven,
}

/// How slices are made from the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cut {
    /// The whole image is resized once and cut into equal tiles (July 2024 release, MiniCPM-V).
    ResizeThenCut,
    /// The image is cut at its own resolution, each tile is resized in its own aspect (paper).
    CutThenResize,
    /// The image is padded to a square with the mean colour, resized to cols·side × rows·side and cut (LLaVA-1.5).
    PadSquare,
}

/// Where the overview stands in the sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OverviewPosition {
    /// Before the slices (MiniCPM-V).
    First,
    /// After the slices (LLaVA-UHD).
    Last,
}

/// A slicing policy: one row of a table, not a code path.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SlicingPolicy {
    /// Its name.
    pub name: String,
    /// Side of the square the vision tower was trained on, in pixels.
    pub side: u32,
    /// Patch size in pixels; all encoded sizes are multiples of it.
    pub patch: u32,
    /// Largest number of slices, without the overview.
    pub max_slices: u32,
    /// The long side is resized to this first, upwards too.
    pub pre_resize: Option<u32>,
    /// Grid selection.
    pub partition: Partition,
    /// Rounding to patch multiples.
    pub rounding: Rounding,
    /// How slices are made.
    pub cut: Cut,
    /// Where the overview stands.
    pub overview: OverviewPosition,
}

/// An override, or a policy read from a file, that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PolicyError(pub String);

/// A row of the table of policies: [`SlicingPolicy`] without an allocation.
struct NamedPolicy {
    name: &'static str,
    side: u32,
    max_slices: u32,
    pre_resize: Option<u32>,
    partition: Partition,
    rounding: Rounding,
    cut: Cut,
    overview: OverviewPosition,
}

/// LLaVA-UHD as released in July 2024, on images as they are. The other rows say in what they differ.
const LLAVA_UHD_RAW: NamedPolicy = NamedPolicy {
    name: "llava-uhd-raw",
    side: 336,
    max_slices: 7,
    pre_resize: None,
    partition: Partition::Adaptive(CandidateRule::Capped),
    rounding: Rounding::Floor,
    cut: Cut::ResizeThenCut,
    overview: OverviewPosition::Last,
};

/// LLaVA-UHD as it was evaluated: every image is first resized to a long side of 1024.
const LLAVA_UHD: NamedPolicy = NamedPolicy { name: "llava-uhd", pre_resize: Some(1024), ..LLAVA_UHD_RAW };

/// All policies, in the order of [`SlicingPolicy::NAMES`]. Every one has patches of [`TABLE_PATCH`] pixels.
const TABLE: [NamedPolicy; 8] = [
    LLAVA_UHD,
    LLAVA_UHD_RAW,
    NamedPolicy {
        name: "llava-uhd-paper",
        max_slices: 6,
        partition: Partition::Adaptive(CandidateRule::Widened),
        cut: Cut::CutThenResize,
        ..LLAVA_UHD_RAW
    },
    NamedPolicy { name: "llava-uhd-v2", max_slices: 9, pre_resize: Some(1024), ..LLAVA_UHD_RAW },
    NamedPolicy {
        name: "minicpm-v",
        side: 448,
        max_slices: 9,
        rounding: Rounding::HalfEven,
        overview: OverviewPosition::First,
        ..LLAVA_UHD_RAW
    },
    NamedPolicy { name: "pad-square", max_slices: 0, partition: Partition::None, cut: Cut::PadSquare, ..LLAVA_UHD_RAW },
    NamedPolicy {
        name: "fixed-2x2",
        max_slices: 4,
        partition: Partition::Fixed { cols: 2, rows: 2 },
        cut: Cut::PadSquare,
        ..LLAVA_UHD_RAW
    },
    NamedPolicy { name: "whole", max_slices: 0, partition: Partition::None, ..LLAVA_UHD_RAW },
];

/// Patch size of all named policies, pixels.
const TABLE_PATCH: u32 = 14;

impl NamedPolicy {
    fn to_policy(&self) -> SlicingPolicy {
        SlicingPolicy {
            name: self.name.to_owned(),
            side: self.side,
            patch: TABLE_PATCH,
            max_slices: self.max_slices,
            pre_resize: self.pre_resize,
            partition: self.partition,
            rounding: self.rounding,
            cut: self.cut,
            overview: self.overview,
        }
    }
}

impl SlicingPolicy {
    /// The names of all policies, in the order they are documented.
    pub const NAMES: &'static [&'static str] = &[
        "llava-uhd",
        "llava-uhd-raw",
        "llava-uhd-paper",
        "llava-uhd-v2",
        "minicpm-v",
        "pad-square",
        "fixed-2x2",
        "whole",
    ];

    /// Largest side, pixels.
    pub const SIDE_MAX: u32 = 4096;
    /// Largest patch, pixels.
    pub const PATCH_MAX: u32 = 256;
    /// Largest `max_slices`.
    pub const SLICES_MAX: u32 = 256;
    /// Largest pre-resize, pixels.
    pub const PRE_RESIZE_MAX: u32 = 65_536;
    /// Most patches of one view.
    ///
    /// The attention of a view grows with the square of its patches, so there must be a limit. A view has about
    /// (side / patch) × √aspect patches once its short side is down to one patch; with this limit every size up to
    /// 100,000 × 100,000 has a plan under every named policy without pre-resize (the largest, 1 × 100,000 under
    /// `minicpm-v`, has 10,119 patches).
    pub const VIEW_PATCHES_MAX: u64 = 16_384;

    /// The policy called `name`, `None` when there is no such policy. [`Self::NAMES`] lists them.
    pub fn named(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.name == name).map(NamedPolicy::to_policy)
    }

    /// `llava-uhd`: the default where nothing else is said.
    pub fn llava_uhd() -> Self {
        LLAVA_UHD.to_policy()
    }

    /// The same policy with another side, patch or number of slices; `None` keeps what is there.
    ///
    /// Everything that the references write as a number of 336, 14, 112,896 (336²) or 576 ((336 / 14)²) follows the
    /// side and the patch. The pre-resize does not: it is a property of the evaluation, not of the tower.
    /// `max_slices` is `max_slice_nums` of the July 2024 release, and the cap that comes before widening for
    /// [`CandidateRule::Widened`], so that one slice more is possible. A policy without a choice of grid keeps its own
    /// number, which must be within the one asked for.
    ///
    /// # Errors
    /// When a value is 0 or above its limit, when the side is not a multiple of the patch, or when the policy has no
    /// choice of grid and makes more slices than asked for.
    pub fn with_overrides(
        mut self,
        side: Option<u32>,
        patch: Option<u32>,
        max_slices: Option<u32>,
    ) -> Result<Self, PolicyError> {
        self.side = side.unwrap_or(self.side);
        self.patch = patch.unwrap_or(self.patch);
        match (self.partition, max_slices) {
            (Partition::Adaptive(_), Some(max)) => self.max_slices = max,
            (Partition::Fixed { .. } | Partition::None, Some(max)) if max < self.max_slices => {
                return Err(PolicyError(format!(
                    "policy {} always makes {} slices, which is more than {max}; allow as many or choose another policy",
                    self.name, self.max_slices
                )));
            }
            _ => {}
        }
        self.validate()?;
        Ok(self)
    }

    /// Whether all numbers are in their limits and fit together. [`Self::plan`] refuses a policy that is not valid.
    ///
    /// # Errors
    /// Names the number that is wrong, and the remedy.
    pub fn validate(&self) -> Result<(), PolicyError> {
        let name = &self.name;
        let within = |what: &str, value: u32, max: u32| match value {
            0 => Err(PolicyError(format!("policy {name}: {what} is 0; it must be at least 1"))),
            _ if value > max => Err(PolicyError(format!("policy {name}: {what} {value} is above the limit of {max}"))),
            _ => Ok(()),
        };
        within("side", self.side, Self::SIDE_MAX)?;
        within("patch", self.patch, Self::PATCH_MAX)?;
        let (side, patch) = (self.side, self.patch);
        if side < patch {
            return Err(PolicyError(format!(
                "policy {name}: side {side} is smaller than patch {patch}; a side holds at least one patch"
            )));
        }
        if !side.is_multiple_of(patch) {
            let below = side - side % patch;
            return Err(PolicyError(format!(
                "policy {name}: side {side} is not a multiple of patch {patch}; the nearest are {below} and {}",
                below + patch
            )));
        }
        if self.square_patches() > Self::VIEW_PATCHES_MAX {
            return Err(PolicyError(format!(
                "policy {name}: a square of side {side} has {} patches of {patch}; the limit is {}",
                self.square_patches(),
                Self::VIEW_PATCHES_MAX
            )));
        }
        if let Some(long_side) = self.pre_resize {
            within("pre-resize", long_side, Self::PRE_RESIZE_MAX)?;
        }
        match self.partition {
            Partition::Adaptive(_) => within("the largest number of slices", self.max_slices, Self::SLICES_MAX),
            Partition::Fixed { cols, rows } => {
                within("columns", cols, Self::SLICES_MAX)?;
                within("rows", rows, Self::SLICES_MAX)?;
                within("the number of slices", cols.saturating_mul(rows), Self::SLICES_MAX)
            }
            Partition::None => Ok(()),
        }
    }

    /// Patches of a square of the tower's side: 576 for 336 and 14.
    pub(crate) const fn square_patches(&self) -> u64 {
        let across = (self.side / self.patch) as u64;
        across * across
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str) -> SlicingPolicy {
        SlicingPolicy::named(name).unwrap()
    }

    #[test]
    fn names_and_table_agree() {
        let table: Vec<&str> = TABLE.iter().map(|row| row.name).collect();
        assert_eq!(table, SlicingPolicy::NAMES);
        for name in SlicingPolicy::NAMES {
            let policy = policy(name);
            assert_eq!(policy.name, *name);
            policy.validate().unwrap();
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(serde_json::from_str::<SlicingPolicy>(&json).unwrap(), policy);
        }
        assert_eq!(SlicingPolicy::named("llava"), None);
        assert_eq!(SlicingPolicy::llava_uhd(), policy("llava-uhd"));
    }

    #[test]
    fn overrides_that_fit_are_taken() {
        let embedded = policy("llava-uhd-raw").with_overrides(Some(112), Some(14), Some(6)).unwrap();
        assert_eq!((embedded.side, embedded.patch, embedded.max_slices), (112, 14, 6));
        assert_eq!(embedded.square_patches(), 64);
        assert_eq!(policy("minicpm-v").with_overrides(None, None, None).unwrap(), policy("minicpm-v"));
        // A bound that a policy without a choice of grid keeps anyway.
        assert_eq!(policy("fixed-2x2").with_overrides(None, None, Some(6)).unwrap(), policy("fixed-2x2"));
        assert_eq!(policy("whole").with_overrides(None, None, Some(1)).unwrap(), policy("whole"));
        policy("llava-uhd").with_overrides(Some(16), Some(16), Some(256)).unwrap();
    }

    #[test]
    fn overrides_that_do_not_fit_are_refused() {
        let cases = [
            ("llava-uhd", Some(0), None, None, "side is 0"),
            ("llava-uhd", None, Some(0), None, "patch is 0"),
            ("llava-uhd", None, None, Some(0), "the largest number of slices is 0"),
            ("llava-uhd", Some(13), None, None, "side 13 is smaller than patch 14"),
            ("llava-uhd", Some(335), None, None, "side 335 is not a multiple of patch 14; the nearest are 322 and 336"),
            ("llava-uhd", None, Some(15), None, "side 336 is not a multiple of patch 15; the nearest are 330 and 345"),
            ("llava-uhd", Some(5000), None, None, "above the limit of 4096"),
            ("llava-uhd", Some(4096), Some(512), None, "above the limit of 256"),
            ("llava-uhd", Some(4096), Some(16), None, "65536 patches of 16; the limit is 16384"),
            ("llava-uhd", None, None, Some(257), "above the limit of 256"),
            ("fixed-2x2", None, None, Some(3), "policy fixed-2x2 always makes 4 slices, which is more than 3"),
        ];
        for (name, side, patch, max_slices, expected) in cases {
            let PolicyError(message) = policy(name).with_overrides(side, patch, max_slices).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
    }
}
