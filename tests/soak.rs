//! A long run takes no more memory, and no more time for a row, than a short one, and its ledger grows with its chunks.

use std::fs;
use std::path::Path;
use std::time::Instant;

use crate::bars::peak_kib;
use crate::fixtures::{Random, encoded, picture};
use crate::program::{long_or, text};

const PICTURES: u64 = 2_000;
const CHUNK_ROWS: u64 = 4_096;

/// What a run took.
struct Taken {
    peak_kib: u64,
    micros_per_row: f64,
    ledger_files: u64,
    ledger_bytes: u64,
}

/// Small pictures, and folders of links to them: as many inputs as are asked for, in the space of a few.
struct Pictures {
    folder: tempfile::TempDir,
}

impl Pictures {
    fn make() -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let originals = folder.path().join("originals");
        fs::create_dir(&originals).expect("folder");
        let mut random = Random::new(70);
        for index in 0..PICTURES {
            let (width, height) = (16 + random.below(64) as u32, 16 + random.below(64) as u32);
            let image = picture(&mut random, width, height);
            fs::write(originals.join(format!("{index}.png")), encoded(&image, image::ImageFormat::Png))
                .expect("written");
        }
        Self { folder }
    }

    /// Captions `rows` links through the null model, at a size that leaves little to do for each but to account for it.
    fn run(&self, rows: u64) -> Taken {
        let (inputs, out) = (self.path(&format!("in-{rows}")), self.path(&format!("out-{rows}")));
        for row in 0..rows {
            let parent = inputs.join(format!("{:04}", row / 1_000));
            if row % 1_000 == 0 {
                fs::create_dir_all(&parent).expect("folder");
            }
            let original = self.path(&format!("originals/{}.png", row % PICTURES));
            fs::hard_link(original, parent.join(format!("{row:07}.png"))).expect("a link");
        }
        let chunk_rows = CHUNK_ROWS.to_string();
        let begun = Instant::now();
        let peak_kib = peak_kib(&[
            "caption",
            text(&inputs),
            "-o",
            text(&out),
            "--model",
            "null",
            "--threads",
            "2",
            "--policy",
            "whole",
            "--side",
            "56",
            "--patch",
            "14",
            "--chunk-rows",
            &chunk_rows,
        ]);
        let micros_per_row = begun.elapsed().as_micros() as f64 / rows as f64;
        let (ledger_files, ledger_bytes) = size_of(&out.join("_slicemill/ledger"));
        let written = fs::read_to_string(out.join("_SUCCESS")).expect("a run that ended");
        assert!(written.contains(&rows.to_string()), "{rows} rows in {written}");
        fs::remove_dir_all(&inputs).expect("removed");
        fs::remove_dir_all(&out).expect("removed");
        Taken { peak_kib, micros_per_row, ledger_files, ledger_bytes }
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

/// Files below a folder and their bytes.
fn size_of(folder: &Path) -> (u64, u64) {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("entry").path());
    let sizes = entries.map(|path| match path.is_dir() {
        true => size_of(&path),
        false => (1, fs::metadata(&path).expect("metadata").len()),
    });
    sizes.fold((0, 0), |all, one| (all.0 + one.0, all.1 + one.1))
}

/// In the short form the bounds are loose, because few rows have not yet touched every pool of the allocator and the
/// start of the program is a large share of their time.
#[cfg(target_os = "linux")]
#[test]
fn a_million_rows_take_the_memory_of_ten_thousand() {
    let (few, many) = (long_or(10_000, 2_000), long_or(1_000_000, 20_000));
    let pictures = Pictures::make();
    let (short, long) = (pictures.run(few), pictures.run(many));
    for (rows, taken) in [(few, &short), (many, &long)] {
        println!(
            "{rows} rows: peak {} KiB, {:.0} µs a row, ledger {} files of {} bytes",
            taken.peak_kib, taken.micros_per_row, taken.ledger_files, taken.ledger_bytes
        );
    }
    let growth_max = long_or(105, 125);
    assert!(long.peak_kib * 100 < short.peak_kib * growth_max, "{} and {} KiB", short.peak_kib, long.peak_kib);
    assert!(
        long.micros_per_row < short.micros_per_row * 1.25,
        "{} and {} µs",
        short.micros_per_row,
        long.micros_per_row
    );
    let chunks = many.div_ceil(CHUNK_ROWS);
    assert!(long.ledger_files <= chunks + 8, "{} files for {chunks} chunks", long.ledger_files);
    assert!(long.ledger_bytes <= chunks * 4_096 + (64 << 10), "{} bytes for {chunks} chunks", long.ledger_bytes);
}
