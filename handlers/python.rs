//! Python applications (WSGI, ASGI): finds the interpreter, which each worker becomes; the extension module in it does the rest.

mod options;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use lurcher::launcher::{BuiltIn, Handler, Target, Values};

pub(crate) const BUILT_IN: BuiltIn = BuiltIn {
    name: options::NAME,
    about: "Run a Python application, WSGI or ASGI",
    targets: &[
        Target {
            scheme: "python",
            form: "python:MODULE:NAME",
        },
        Target {
            scheme: "",
            form: "MODULE:NAME",
        },
    ],
    options: options::OPTIONS,
    run,
};

/// What the interpreter begins with: it loads the module, by its path or as it is installed, and that serves.
const STUB: &str = include_str!("python/stub.py");

fn run(values: &Values) -> Result<Handler, String> {
    let interpreter = interpreter(values.get("python"))?;
    let module = module().unwrap_or_default();
    Ok(Handler::becoming(
        interpreter,
        ["-c".into(), STUB.into(), module, values.target().into()],
    ))
}

fn interpreter(named: Option<&str>) -> Result<PathBuf, String> {
    if let Some(named) = named {
        return Ok(named.into());
    }
    let environment =
        std::env::var_os("VIRTUAL_ENV").map(|folder| Path::new(&folder).join("bin/python"));
    let here = Path::new(".venv/bin/python");
    environment
        .into_iter()
        .chain([here.to_owned()])
        .find(|path| path.exists())
        .or_else(|| Some("python3".into()))
        .ok_or_else(|| "no Python found".to_owned())
}

/// The extension module beside this program.
fn module() -> Option<OsString> {
    let own = std::env::current_exe().ok()?;
    let path = own.with_file_name("liblurcher_python.so");
    path.exists().then(|| path.into_os_string())
}
