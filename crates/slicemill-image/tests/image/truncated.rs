//! Images that end too early, where the job allows them.

use slicemill_core::{Alpha, ErrorClass, ImageOptions, Normalisation, RowError, SlicingPolicy, Truncated};
use slicemill_image::{DecodedImage, decode, prepare, read_header};

use crate::{images, sha256};

const ALLOW: ImageOptions = ImageOptions {
    orientation: slicemill_core::OrientationRule::Apply,
    alpha: Alpha::Drop,
    pixels_max: ImageOptions::PIXELS_MAX_DEFAULT,
    truncated: Truncated::Allow,
};

fn fixture(name: &str) -> Vec<u8> {
    std::fs::read(images().join(name)).unwrap()
}

fn allowed(bytes: &[u8], name: &str) -> Result<DecodedImage, RowError> {
    let header = read_header(bytes, name, &ALLOW)?;
    decode(bytes, &header, &ALLOW)
}

#[test]
fn what_there_is_and_what_is_not_equal_pillow() {
    let table = String::from_utf8(fixture("truncated.csv")).unwrap();
    let mut wrong = Vec::new();
    for line in table.lines().skip(1) {
        let [name, len, expected] = line.split(',').collect::<Vec<_>>().try_into().unwrap();
        let bytes = &fixture(name)[..len.parse().unwrap()];
        match allowed(bytes, name) {
            Ok(decoded) => {
                assert!(decoded.truncated, "{line}");
                if sha256(decoded.image.as_bytes()) != expected {
                    wrong.push(line.to_owned());
                }
            }
            Err(error) => wrong.push(format!("{line}: {error}")),
        }
        // By default it is an error.
        let strict = ImageOptions::default();
        let header = read_header(bytes, name, &strict).unwrap();
        assert_eq!(decode(bytes, &header, &strict).unwrap_err().class, ErrorClass::Truncated, "{line}");
    }
    assert!(table.lines().count() > 40 && wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn whole_images_are_the_same_and_not_marked() {
    for name in
        ["noise_420.jpg", "progressive_420.jpg", "rgba8.png", "interlaced.gif", "rle8.bmp", "lossy.webp", "tiles.tif"]
    {
        let strict = ImageOptions { truncated: Truncated::Fail, ..ALLOW };
        let bytes = fixture(name);
        let header = read_header(&bytes, name, &strict).unwrap();
        let whole = decode(&bytes, &header, &strict).unwrap();
        assert!(!whole.truncated);
        assert_eq!(allowed(&bytes, name).unwrap(), whole, "{name}");
    }
}

/// Pillow drops the last block of a GIF that is cut, here every row that is whole is kept.
#[test]
fn a_gif_keeps_its_whole_rows() {
    let bytes = fixture("palette.gif");
    let whole = allowed(&bytes, "whole").unwrap().image;
    let stride = whole.size().width as usize * 3;
    let palette_at = 13;
    for share in [5, 7, 9] {
        let part = allowed(&bytes[..bytes.len() * share / 10], "part").unwrap();
        assert!(part.truncated);
        let rows = part.image.as_bytes().chunks(stride).zip(whole.as_bytes().chunks(stride));
        let kept = rows.take_while(|(part, whole)| part == whole).count();
        assert!(kept > 0 && kept < whole.size().height as usize, "{kept} rows");
        let rest = &part.image.as_bytes()[kept * stride..];
        assert!(rest.chunks(3).all(|pixel| pixel == &bytes[palette_at..palette_at + 3]), "{kept} rows");
    }
}

/// Of a progressive image the scans that came are there, without libjpeg's smoothing.
#[test]
fn a_progressive_image_keeps_its_first_scans() {
    let bytes = fixture("progressive_420.jpg");
    let whole = allowed(&bytes, "whole").unwrap().image;
    let mut distances = Vec::new();
    for share in [3, 5, 7, 9] {
        let part = allowed(&bytes[..bytes.len() * share / 10], "part").unwrap();
        assert!(part.truncated);
        let pairs = part.image.as_bytes().iter().zip(whole.as_bytes());
        distances.push(pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum::<u64>());
    }
    assert!(distances.is_sorted_by(|earlier, later| earlier >= later) && distances[0] > distances[3], "{distances:?}");
}

#[test]
fn formats_that_cannot_be_cut_fail_all_the_same() {
    for name in ["lossy.webp", "lossless.webp", "rgb_none.tif", "rgb_lzw.tif", "rle8.bmp"] {
        let bytes = fixture(name);
        let error = allowed(&bytes[..bytes.len() * 6 / 10], name).unwrap_err();
        assert!(matches!(error.class, ErrorClass::Truncated | ErrorClass::Corrupt), "{name}: {error}");
    }
}

/// Damage in the middle is no early end.
#[test]
fn damage_is_not_allowed() {
    let mut bytes = fixture("rgb8.png");
    let at = bytes.windows(4).position(|kind| kind == b"IDAT").unwrap() + 40;
    bytes[at] ^= 0x55;
    assert_eq!(allowed(&bytes, "damaged.png").unwrap_err().class, ErrorClass::Corrupt);
}

#[test]
fn what_the_model_sees_is_marked() {
    let bytes = fixture("baseline_420.jpg");
    for (len, truncated) in [(bytes.len(), false), (bytes.len() * 7 / 10, true)] {
        let header = read_header(&bytes[..len], "a.jpg", &ALLOW).unwrap();
        let plan = SlicingPolicy::llava_uhd().plan(header.oriented_size(ALLOW.orientation)).unwrap();
        let prepared = prepare(&bytes[..len], &header, &plan, &ALLOW, &Normalisation::CLIP).unwrap();
        assert_eq!((prepared.views.len(), prepared.truncated), (plan.views().len(), truncated));
    }
}
