//! Views and patches equal those that Pillow and numpy make.

use slicemill_core::{Cut, ErrorClass, Grid, Normalisation, OverviewPosition, Size, SlicePlan};
use slicemill_image::{RgbImage, cut_views, normalise, pad_colour};

use crate::{images, noise, sha256};

fn plan(fields: &[&str]) -> SlicePlan {
    let number = |at: usize| fields[at].parse::<u32>().unwrap();
    let size = |at: usize| Size::new(number(at), number(at + 1));
    SlicePlan {
        image: size(1),
        working: size(3),
        grid: Grid { cols: number(5), rows: number(6) },
        cut: match fields[7] {
            "resize_then_cut" => Cut::ResizeThenCut,
            "cut_then_resize" => Cut::CutThenResize,
            "pad_square" => Cut::PadSquare,
            other => panic!("{other}"),
        },
        slice: size(8),
        overview: size(10),
        overview_position: if fields[12] == "first" { OverviewPosition::First } else { OverviewPosition::Last },
        patch: 14,
    }
}

#[test]
fn views_and_patches_equal_pillow_and_numpy() {
    let table = std::fs::read_to_string(images().join("views.csv")).unwrap();
    let mut cases = 0;
    for line in table.lines().skip(1) {
        let fields: Vec<&str> = line.split(',').collect();
        let plan = plan(&fields);
        let image = noise(fields[0].parse().unwrap(), plan.image);
        let views = cut_views(&image, &plan, pad_colour(&Normalisation::CLIP)).unwrap();
        assert_eq!(views.len(), plan.view_count() as usize);
        for (view, planned) in views.iter().zip(plan.views()) {
            assert_eq!(view.size(), planned.size, "{line}");
        }
        let pixels: Vec<u8> = views.iter().flat_map(|view| view.as_bytes().to_vec()).collect();
        assert_eq!(sha256(&pixels), fields[13], "{line}");
        let values: Vec<u8> = views
            .iter()
            .flat_map(|view| normalise(view, plan.patch, &Normalisation::CLIP).patches)
            .flat_map(f32::to_le_bytes)
            .collect();
        assert_eq!(sha256(&values), fields[14], "{line}");
        cases += 1;
    }
    assert_eq!(cases, 9);
}

#[test]
fn a_plan_of_another_image_is_refused() {
    let fields = ["0", "30", "20", "30", "20", "0", "0", "resize_then_cut", "0", "0", "28", "14", "last"];
    let image = RgbImage::filled(Size::new(31, 20), [9; 3]);
    let error = cut_views(&image, &plan(&fields), [0; 3]).unwrap_err();
    assert_eq!(error.class, ErrorClass::PlanRejected);
}

#[test]
fn crops_without_pixels_are_refused() {
    let fields = ["0", "3", "2", "3", "2", "4", "1", "cut_then_resize", "14", "14", "28", "14", "last"];
    let image = RgbImage::filled(Size::new(3, 2), [9; 3]);
    let error = cut_views(&image, &plan(&fields), [0; 3]).unwrap_err();
    assert_eq!(error.class, ErrorClass::PlanRejected);
}

#[test]
fn the_pad_colour_is_that_of_llava() {
    assert_eq!(pad_colour(&Normalisation::CLIP), [122, 116, 104]);
    assert_eq!(pad_colour(&Normalisation::HALF), [127, 127, 127]);
}
