//! From the members of an archive to inputs: which are images, what their keys are, which columns they carry.

use std::borrow::Cow;
use std::sync::Arc;

use slicemill_core::ErrorClass;

use super::super::columns;
use super::super::counts::SourceCounts;
use super::super::kinds::{Promise, looks_like_image, promise};
use super::header::Kind;
use super::names::{Names, SafeName, counted_as, is_noise, safe_name, sample, suffix};
use super::walk::{Item, Member, Walk, shown};
use crate::{InputEntry, Place};

/// Text of one sample that is taken into columns, in bytes.
const SAMPLE_TEXT_MAX: u64 = 1 << 20;
/// Images of one sample that share its columns.
const SAMPLE_IMAGES_MAX: usize = 1024;
/// What is read of a member whose name says nothing.
const SNIFFED: usize = 64;

/// The archive that is listed.
#[derive(Debug, Clone)]
pub(crate) struct ArchiveName {
    pub(crate) key: String,
    /// Without a place.
    pub(crate) url: String,
    pub(crate) tag: String,
    /// In messages.
    pub(crate) shown: String,
    /// Members are found in what the archive unpacks to.
    pub(crate) unpacked: bool,
}

/// Makes entries of members.
#[derive(Debug)]
pub(crate) struct Entries {
    archive: ArchiveName,
    /// Columns asked for.
    columns: Arc<[String]>,
    names: Names,
    position: u64,
    sample: Sample,
    pub(crate) counts: SourceCounts,
}

/// Members that follow each other and belong together.
#[derive(Debug, Default)]
struct Sample {
    name: String,
    images: Vec<InputEntry>,
    /// Text members by suffix.
    texts: Vec<(String, Vec<u8>)>,
    text_bytes: u64,
}

impl Entries {
    pub(crate) fn new(archive: ArchiveName, columns: Arc<[String]>) -> Self {
        let (names, sample, counts) = Default::default();
        Self { archive, columns, names, position: 0, sample, counts }
    }

    /// How much of the beginning of a file is needed.
    pub(crate) fn wanted(&self, name: &[u8], bytes: u64) -> usize {
        if is_noise(name) {
            return 0;
        }
        let name = safe_name(name).text;
        match promise(&name) {
            Promise::Image => 0,
            _ if self.is_column(&name) && bytes <= SAMPLE_TEXT_MAX => usize::try_from(bytes).unwrap_or(0),
            Promise::Other => 0,
            Promise::Nothing => SNIFFED,
        }
    }

    /// Whether a member may hold columns.
    fn is_column(&self, name: &str) -> bool {
        let suffix = suffix(name);
        !self.columns.is_empty() && (suffix == "json" || self.columns.iter().any(|column| column == suffix))
    }

    /// Takes what the walk came by.
    pub(crate) fn take(&mut self, item: Item, out: &mut Vec<InputEntry>) {
        self.position += 1;
        match item {
            Item::Damage { at, class, why, .. } => {
                let why = format!("{}: at byte {at}: {why}", self.archive.shown);
                self.flush(out);
                self.refuse(format!("(damaged at byte {at})"), class, why, out);
            }
            Item::Member(member) => self.member(member, out),
        }
    }

    /// What the archive as a whole came to.
    pub(crate) fn finish(&mut self, walk: &Walk, out: &mut Vec<InputEntry>) {
        self.flush(out);
        let shown = &self.archive.shown;
        if walk.trailing > 0 {
            self.counts.note(format!("{shown}: {} bytes after its end are no members", walk.trailing));
        }
        if walk.unmarked {
            self.counts.note(format!("{shown} ends without an end mark; it may have been cut off"));
        }
    }

    /// A row for what is lost after `at`.
    pub(crate) fn lost(&mut self, at: u64, class: ErrorClass, why: &str, out: &mut Vec<InputEntry>) {
        self.position += 1;
        self.flush(out);
        let why = format!("{}: {why}", self.archive.shown);
        self.refuse(format!("(lost after byte {at})"), class, why, out);
    }

    fn member(&mut self, member: Member, out: &mut Vec<InputEntry>) {
        let left_out = match member.kind {
            Kind::Directory => Some("folders"),
            Kind::Link => Some("links"),
            Kind::Special => Some("devices"),
            Kind::File | Kind::Sparse if is_noise(&member.name) => Some("noise of archivers"),
            Kind::File | Kind::Sparse => None,
            _ => Some("other"),
        };
        if let Some(what) = left_out {
            self.counts.leave_out(what);
            if let Some((_, why)) = &member.broken {
                let (shown, name) = (&self.archive.shown, shown(&member.name));
                self.counts.note(format!("{shown}: member '{name}' at byte {}: {why}", member.header_at));
            }
            return;
        }
        let SafeName { text: name, refused } = safe_name(&member.name);
        if !self.columns.is_empty() && sample(&name) != self.sample.name {
            self.flush(out);
            sample(&name).clone_into(&mut self.sample.name);
        }
        let unseen = member.beginning.is_empty() && member.bytes > 0 || member.broken.is_some();
        let image = match promise(&name) {
            Promise::Image => true,
            Promise::Other => false,
            Promise::Nothing => looks_like_image(&member.beginning) || (member.beginning.is_empty() && unseen),
        };
        if image {
            self.image(&member, name, refused, out);
        } else {
            self.other(member, &name);
        }
    }

    fn other(&mut self, member: Member, name: &str) {
        self.counts.leave_out(&counted_as(name));
        let (archive, at) = (&self.archive.shown, member.header_at);
        if let Some((_, why)) = &member.broken {
            self.counts.note(format!("{archive}: member '{name}' at byte {at}: {why}"));
        } else if self.is_column(name) {
            if self.sample.text_bytes.saturating_add(member.bytes) > SAMPLE_TEXT_MAX {
                let why = format!("its text is left out: more than {SAMPLE_TEXT_MAX} bytes in one sample");
                self.counts.note(format!("{archive}: member '{name}' at byte {at}: {why}"));
                return;
            }
            self.sample.text_bytes += member.bytes;
            self.sample.texts.push((suffix(name).to_owned(), member.beginning));
        }
    }

    fn image(&mut self, member: &Member, name: String, refused: Option<&str>, out: &mut Vec<InputEntry>) {
        let archive = &self.archive.shown;
        let (original, at) = (shown(&member.name), member.header_at);
        let named = format!("{archive}: member '{original}' at byte {at}");
        if let Some(why) = refused {
            let why =
                format!("{named}: its name cannot be that of a file: {why}; make the archive with relative names");
            return self.refuse(name, ErrorClass::LocationRefused, why, out);
        }
        if let Some((class, why)) = &member.broken {
            return self.refuse(name, *class, format!("{named}: {why}"), out);
        }
        let (unique, new) = self.names.unique(name);
        if !new {
            let why = format!("{named}: a member of this name came before; the first one counts");
            return self.refused(unique, ErrorClass::DuplicateKey, why, out);
        }
        let (offset, bytes) = (member.offset, member.bytes);
        let place = if self.archive.unpacked { Place::Unpacked { offset, bytes } } else { Place::At { offset, bytes } };
        let entry = self.entry(&unique, place, bytes);
        self.push(entry, out);
    }

    fn refuse(&mut self, name: String, class: ErrorClass, why: String, out: &mut Vec<InputEntry>) {
        let (unique, _) = self.names.unique(name);
        self.refused(unique, class, why, out);
    }

    fn refused(&mut self, unique: String, class: ErrorClass, why: String, out: &mut Vec<InputEntry>) {
        self.counts.refuse(class);
        let entry = self.entry(&unique, Place::Refused { class, why }, 0);
        self.push(entry, out);
    }

    fn entry(&self, name: &str, place: Place, bytes: u64) -> InputEntry {
        let container = u32::try_from(self.archive.key.len()).unwrap_or(0);
        InputEntry {
            key: format!("{}/{name}", self.archive.key),
            url: place.join(&self.archive.url),
            bytes,
            tag: self.archive.tag.clone(),
            estimated: false,
            container,
            position: self.position - 1,
            columns: None,
        }
    }

    fn push(&mut self, entry: InputEntry, out: &mut Vec<InputEntry>) {
        self.counts.rows += 1;
        if self.columns.is_empty() {
            out.push(entry);
            return;
        }
        if self.sample.images.len() >= SAMPLE_IMAGES_MAX {
            let note = format!(
                "{}: more than {SAMPLE_IMAGES_MAX} images named '{}'; texts after them are not their columns",
                self.archive.shown, self.sample.name
            );
            self.counts.note(note);
            self.flush(out);
        }
        self.sample.images.push(entry);
    }

    /// Gives the images of the sample their columns.
    fn flush(&mut self, out: &mut Vec<InputEntry>) {
        if self.sample.images.is_empty() {
            // Texts of a sample that was cut in two stay with their name.
            self.sample = Sample::default();
            return;
        }
        let sample = std::mem::take(&mut self.sample);
        let columns = self.columns_of(&sample);
        for image in sample.images {
            out.push(InputEntry { columns: columns.clone(), ..image });
        }
    }

    fn columns_of(&mut self, sample: &Sample) -> Option<String> {
        let text = |suffix: &str| sample.texts.iter().find(|(other, _)| other == suffix).map(|(_, text)| &text[..]);
        let mut odd = |suffix: &str, why: &str| {
            let archive = &self.archive.shown;
            self.counts.note(format!("{archive}: sample '{}': its {suffix} is left out: {why}", sample.name));
        };
        let mut utf8 = |suffix: &str| {
            let valid = std::str::from_utf8(text(suffix)?);
            valid.inspect_err(|_| odd(suffix, "it is not UTF-8")).ok()
        };
        let json = utf8("json");
        let direct: Vec<_> =
            self.columns.iter().map(|column| if column == "json" { json } else { utf8(column) }).collect();
        let fields = json.map(columns::fields).transpose().unwrap_or_else(|why| {
            odd("json", &why);
            None
        });
        let fields = fields.unwrap_or_default();
        let mut direct = direct.into_iter();
        columns::object(&self.columns, |column| match direct.next().flatten() {
            Some(text) if column == "cls" => Some(columns::spell_untyped(text.trim())),
            Some(text) => Some(Cow::Owned(columns::spell(text))),
            None => {
                columns::field(&fields, column).filter(|value| columns::check_value(value).is_ok()).map(Cow::Borrowed)
            }
        })
    }
}
