//! Servers of other makers, started for a test when they are installed: moto (S3), Azurite (Azure blobs), nginx (http).
//!
//! They are found by `SLICEMILL_MOTO`, `SLICEMILL_AZURITE` and `SLICEMILL_NGINX`, which name the programs, or in `PATH`;
//! `.ci/servers.sh` installs them. Where one is missing, tests say so and leave it out.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::azure::{ACCOUNT, signed};
use super::client::send;
use super::files::encode;
use super::s3::environment;

const BUCKET: &str = "slicemill";

/// moto wants a signature and does not check it.
const UNCHECKED: (&str, &str) = (
    "authorization",
    "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLETESTS/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0",
);

/// A server in a process of its own, which ends with it.
#[derive(Debug)]
struct Process {
    child: Child,
    endpoint: String,
    folder: TempDir,
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The program named by `variable`, or found in `PATH` as `name`; `None` with a message where there is none.
#[allow(clippy::disallowed_methods, reason = "what is installed is said by the environment")]
fn installed(variable: &str, name: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    if let Some(named) = &named {
        assert!(named.is_file(), "{variable} names {}, which is no file", named.display());
    }
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let program =
        named.or_else(|| std::env::split_paths(&folders).map(|folder| folder.join(name)).find(|p| p.is_file()));
    if program.is_none() {
        println!("left out: no {name}; .ci/servers.sh installs it, {variable} names it");
    }
    program
}

/// Starts a program with the arguments for a free port and a folder, and waits until it listens.
fn launch(program: &Path, arguments: impl Fn(u16, &Path) -> Vec<String>) -> Process {
    // Another program may take the port before this one does.
    for _ in 0..5 {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
        let folder = tempfile::tempdir().expect("folder");
        let log = fs::File::create(folder.path().join("log")).expect("a log");
        let mut command = Command::new(program);
        command.args(arguments(port, folder.path())).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut process = Process { child, endpoint: format!("http://127.0.0.1:{port}"), folder };
        let begun = Instant::now();
        while process.child.try_wait().expect("the server's state").is_none() {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return process;
            }
            let said = || fs::read_to_string(process.folder.path().join("log")).unwrap_or_default();
            assert!(begun.elapsed() < Duration::from_secs(60), "{} does not listen: {}", program.display(), said());
            sleep(Duration::from_millis(50));
        }
        println!("{}", fs::read_to_string(process.folder.path().join("log")).unwrap_or_default());
    }
    panic!("{} does not start", program.display())
}

/// A store that tests put objects into and read rows from.
#[derive(Debug)]
pub struct External {
    process: Process,
    azure: bool,
}

impl External {
    /// moto's S3 with an empty bucket.
    pub fn moto() -> Option<Self> {
        let program = installed("SLICEMILL_MOTO", "moto_server")?;
        let text = |part: &str| part.to_owned();
        let process = launch(&program, |port, _| vec![text("-H"), text("127.0.0.1"), text("-p"), port.to_string()]);
        let made = send(&process.endpoint, "PUT", &format!("/{BUCKET}"), &[UNCHECKED], b"");
        assert_eq!(made.status, 200, "{made:?}");
        Some(Self { process, azure: false })
    }

    /// Azurite's blobs with an empty container.
    pub fn azurite() -> Option<Self> {
        let program = installed("SLICEMILL_AZURITE", "azurite-blob")?;
        let process = launch(&program, |port, folder| {
            let (port, folder) = (port.to_string(), folder.display().to_string());
            let place = ["--blobHost", "127.0.0.1", "--blobPort", &port, "--location", &folder];
            let quiet = ["--silent", "--disableTelemetry", "--skipApiVersionCheck"];
            place.into_iter().chain(quiet).map(str::to_owned).collect()
        });
        let store = Self { process, azure: true };
        let made = signed(&store.process.endpoint, "PUT", &format!("/{ACCOUNT}/{BUCKET}?restype=container"), &[], b"");
        assert_eq!(made.status, 201, "{made:?}");
        Some(store)
    }

    /// URL of an object or a prefix.
    pub fn url(&self, key: &str) -> String {
        format!("{}://{BUCKET}/{key}", if self.azure { "az" } else { "s3" })
    }

    /// What a child process needs in its environment to reach the store.
    pub fn env(&self) -> Vec<(String, String)> {
        if !self.azure {
            return environment(&self.process.endpoint, "AKIDEXAMPLETESTS", "secret");
        }
        let pairs = [
            ("AZURE_STORAGE_USE_EMULATOR", "true"),
            ("AZURITE_BLOB_STORAGE_URL", &self.process.endpoint),
            ("AZURE_ALLOW_HTTP", "true"),
            ("NO_PROXY", "127.0.0.1"),
        ];
        pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()
    }

    /// Puts an object.
    pub fn put(&self, key: &str, bytes: &[u8]) {
        let (endpoint, path) = (&self.process.endpoint, format!("/{BUCKET}/{}", encode(key)));
        let answer = match self.azure {
            true => signed(endpoint, "PUT", &format!("/{ACCOUNT}{path}"), &[("x-ms-blob-type", "BlockBlob")], bytes),
            false => send(endpoint, "PUT", &path, &[UNCHECKED], bytes),
        };
        assert!(matches!(answer.status, 200 | 201), "{key}: {answer:?}");
    }

    /// Puts all files of a folder, their keys `prefix` and their paths in it.
    pub fn put_folder(&self, folder: &Path, prefix: &str) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("entry").path();
            let key = format!("{prefix}{}", path.file_name().and_then(|name| name.to_str()).expect("a UTF-8 name"));
            match path.is_dir() {
                true => self.put_folder(&path, &format!("{key}/")),
                false => self.put(&key, &fs::read(&path).expect("readable")),
            }
        }
    }
}

/// nginx in front of a folder.
#[derive(Debug)]
pub struct Nginx {
    process: Process,
}

impl Nginx {
    /// Serves the files of `folder`.
    pub fn start(folder: &Path) -> Option<Self> {
        let program = installed("SLICEMILL_NGINX", "nginx")?;
        let process = launch(&program, |port, home| {
            let config = home.join("nginx.conf");
            fs::write(&config, nginx_config(port, home, folder)).expect("written");
            let (home, config) = (home.display().to_string(), config.display().to_string());
            ["-p", &home, "-c", &config, "-e", "stderr"].map(str::to_owned).to_vec()
        });
        Some(Self { process })
    }

    /// Where it listens.
    pub fn endpoint(&self) -> String {
        self.process.endpoint.clone()
    }

    /// URL of a file by its path in the folder.
    pub fn url(&self, path: &str) -> String {
        format!("{}/{}", self.process.endpoint, encode(path))
    }
}

fn nginx_config(port: u16, home: &Path, folder: &Path) -> String {
    let (home, folder) = (home.display(), folder.display());
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {home}/{kind};\n"))
        .concat();
    format!(
        "daemon off; master_process off; pid {home}/nginx.pid; worker_processes 1;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off;\n{temporary}\
         server {{ listen 127.0.0.1:{port}; root {folder}; }} }}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nginx_serves_ranges_of_files() {
        let folder = tempfile::tempdir().expect("folder");
        fs::write(folder.path().join("a b.txt"), "0123456789").expect("written");
        let Some(server) = Nginx::start(folder.path()) else { return };
        let target = server.url("a b.txt").strip_prefix(&server.endpoint()).expect("of the server").to_owned();
        let answer = send(&server.endpoint(), "GET", &target, &[("range", "bytes=3-5")], b"");
        assert_eq!((answer.status, answer.text().as_str()), (206, "345"));
    }

    #[test]
    fn moto_takes_objects_and_gives_ranges() {
        let Some(store) = External::moto() else { return };
        store.put("in/a b.txt", b"0123456789");
        let headers = [UNCHECKED, ("range", "bytes=3-5")];
        let answer = send(&store.process.endpoint, "GET", "/slicemill/in/a%20b.txt", &headers, b"");
        assert_eq!((answer.status, answer.text().as_str()), (206, "345"), "{answer:?}");
        assert_eq!(store.url("in/"), "s3://slicemill/in/");
    }

    #[test]
    fn azurite_takes_signed_objects_and_refuses_unsigned_requests() {
        let Some(store) = External::azurite() else { return };
        store.put("in/a b.txt", b"0123456789");
        let target = format!("/{ACCOUNT}/{BUCKET}/in/a%20b.txt");
        let answer = signed(&store.process.endpoint, "GET", &target, &[("x-ms-range", "bytes=3-5")], b"");
        assert_eq!((answer.status, answer.text().as_str()), (206, "345"), "{answer:?}");
        assert!(matches!(send(&store.process.endpoint, "GET", &target, &[], b"").status, 403 | 404));
    }
}
