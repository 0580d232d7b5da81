//! Which Python: finds the interpreter, asks it what it is, and finds the extension module for it. Nothing of Python is loaded here.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use lurcher::launcher::Values;

/// The oldest version that the extension module runs in.
const OLDEST: (u32, u32) = (3, 10);

/// The extension module as cargo builds it, beside this program.
const BESIDE: &str = "liblurcher_python.so";

/// What an interpreter says of itself, a line each: kept to what costs no time.
const QUESTIONS: &str = r"
import os, sys
from importlib.util import find_spec
sys.path[:] = [path for path in sys.path if path]
spec = find_spec('lurcher')
found = ''
for folder in (spec.submodule_search_locations or ()) if spec else ():
    for name in sorted(os.listdir(folder)):
        if name.startswith('_lurcher.') and name.endswith('.so'):
            found = os.path.join(folder, name)
version = '%d.%d.%d' % sys.version_info[:3]
venv = sys.prefix if sys.prefix != sys.base_prefix else ''
free = 'free-threaded' if 't' in getattr(sys, 'abiflags', '') else ''
lines = (sys.implementation.name, version, free, sys.executable, venv, found)
sys.stdout.buffer.write(b'\n'.join(os.fsencode(line) for line in lines))
";

/// An interpreter that the extension module runs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Interpreter {
    /// The program.
    pub(super) program: PathBuf,
    /// Its version.
    pub(super) version: String,
    /// The virtual environment that it belongs to, where it is of one.
    pub(super) environment: Option<PathBuf>,
    /// The extension module; none: it is imported as it is installed.
    pub(super) extension: Option<PathBuf>,
    /// Who said that it is this one.
    pub(super) because: &'static str,
}

impl Interpreter {
    /// Finds it, and asks it as the workers' user.
    ///
    /// # Errors
    ///
    /// When there is none, or it cannot be used; the error says why.
    pub(super) fn find(
        values: &Values,
        named: Option<&str>,
        app_dir: &Path,
    ) -> Result<Self, String> {
        let (program, because) = program(values, named, app_dir)?;
        let shown = program.display();
        let wrong = |why: String| match because {
            "--python" => format!("--python `{shown}`: {why}"),
            _ => format!("python {shown} ({because}): {why}"),
        };
        let arguments = ["-c".as_ref(), OsStr::new(QUESTIONS)];
        let output = values.try_program(&program, &arguments).map_err(wrong)?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            let last = words.lines().last().unwrap_or("it said nothing");
            return Err(wrong(format!(
                "it does not answer: {}: {last}",
                output.status
            )));
        }
        let mut lines = output.stdout.split(|byte| *byte == b'\n');
        let mut line = || OsString::from_vec(lines.next().unwrap_or_default().to_vec());
        let [
            implementation,
            version,
            threading,
            executable,
            environment,
            installed,
        ] = std::array::from_fn(|_| line());
        let version = version.to_string_lossy().into_owned();
        let implementation = implementation.to_string_lossy();
        check(&implementation, &version, !threading.is_empty()).map_err(wrong)?;
        let path = |text: OsString| Some(PathBuf::from(text)).filter(|path| path != Path::new(""));
        let extension = beside();
        if extension.is_none() && installed.is_empty() {
            return Err(wrong(format!(
                "there is no extension module for it: neither {BESIDE} beside this program nor the package `lurcher` in its own: install it there with pip"
            )));
        }
        Ok(Self {
            // A shim, as pyenv's, would be gone through again by every worker.
            program: path(executable).unwrap_or(program),
            version,
            environment: path(environment),
            extension,
            because,
        })
    }
}

/// Whether the extension module runs there.
fn check(implementation: &str, version: &str, is_free_threaded: bool) -> Result<(), String> {
    let (oldest, minor) = OLDEST;
    if implementation != "cpython" {
        return Err(format!(
            "it is {implementation}, and CPython {oldest}.{minor} or newer is needed"
        ));
    }
    let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
    let found = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if found < OLDEST {
        return Err(format!(
            "it is Python {version}, and {oldest}.{minor} or newer is needed"
        ));
    }
    if is_free_threaded {
        return Err(format!(
            "it is a free-threaded Python {version}, and one with the GIL is needed"
        ));
    }
    Ok(())
}

/// The program, and who said so.
fn program(
    values: &Values,
    named: Option<&str>,
    app_dir: &Path,
) -> Result<(PathBuf, &'static str), String> {
    if let Some(named) = named {
        let path = PathBuf::from(named);
        // The folder of an environment, as VIRTUAL_ENV is one.
        let path = if path.is_dir() {
            python_of(&path)
        } else {
            path
        };
        // What has a slash is a place, seen from here; the rest is looked for in PATH.
        let has_slash = path.as_os_str().as_bytes().contains(&b'/');
        let path = std::path::absolute(&path)
            .ok()
            .filter(|_| has_slash)
            .unwrap_or(path);
        return Ok((path, "--python"));
    }
    if let Some(folder) = std::env::var_os("VIRTUAL_ENV").filter(|folder| !folder.is_empty()) {
        let program = python_of(Path::new(&folder));
        if !program.exists() {
            let shown = program.display();
            return Err(format!(
                "VIRTUAL_ENV has no interpreter: {shown} is not there"
            ));
        }
        return Ok((program, "VIRTUAL_ENV"));
    }
    let here = std::path::absolute(values.folder().unwrap_or(Path::new(".")));
    let folders = [Some(app_dir.to_owned()), here.ok()];
    let mut programs = folders
        .into_iter()
        .flatten()
        .map(|folder| python_of(&folder.join(".venv")));
    if let Some(program) = programs.find(|program| program.exists()) {
        return Ok((program, ".venv"));
    }
    Ok(match own() {
        Some(program) => (program, "installed for it"),
        None => ("python3".into(), "PATH"),
    })
}

fn python_of(folder: &Path) -> PathBuf {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    folder.join("bin/python")
}

/// The interpreter that this program was installed for with pip: of the environment that its folder belongs to.
fn own() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let folder = program.parent()?;
    let python = folder.join("python");
    (folder.parent()?.join("pyvenv.cfg").exists() && python.exists()).then_some(python)
}

/// The extension module beside this program.
fn beside() -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    // Put in its place while this one runs, as a build does it.
    let own = match own.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(path) => PathBuf::from(OsStr::from_bytes(path)),
        None => own,
    };
    Some(own.with_file_name(BESIDE)).filter(|path| path.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cpython_that_is_new_enough_is_taken() {
        assert_eq!(check("cpython", "3.10.0", false), Ok(()));
        assert_eq!(check("cpython", "3.14.1", false), Ok(()));
        for (implementation, version, is_free_threaded) in [
            ("cpython", "3.9.18", false),
            ("cpython", "2.7.18", false),
            ("cpython", "", false),
            ("pypy", "3.11.1", false),
            ("cpython", "3.14.0", true),
        ] {
            assert!(check(implementation, version, is_free_threaded).is_err());
        }
    }

    #[test]
    fn what_is_named_is_a_program_a_command_or_an_environment() {
        let values = Values::default();
        let found = |named| program(&values, Some(named), Path::new("/")).unwrap().0;
        assert_eq!(found("python3.12"), Path::new("python3.12"));
        assert_eq!(found("/opt/bin/python"), Path::new("/opt/bin/python"));
        let folder = std::env::temp_dir();
        assert_eq!(
            found(folder.to_str().unwrap()),
            std::path::absolute(folder.join("bin/python")).unwrap()
        );
    }
}
