//! The page of `lurcher demo`: what runs, and two things to try from a browser. It serves nothing else.

use lurcher::handler::{Connection, Event, ReplyError};
use lurcher::launcher::{BuiltIn, Handler, Opt, Values};

const PAGE: &str = include_str!("demo_page.html");

/// Nothing but the page itself and its own server.
const POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'";

pub(crate) const BUILT_IN: BuiltIn = BuiltIn {
    name: "demo-page",
    about: "The page that `lurcher demo` shows",
    targets: &[],
    options: &[Opt {
        name: "process",
        value: "ROUTE PID COMMAND",
        help: "A process to list, `self` for this one's PID; may be repeated",
        repeat: true,
    }],
    run: |values| {
        let page = page(values)?;
        Ok(Handler::new(|connection| serve(connection, page)))
    },
};

async fn serve(mut connection: Connection, page: String) -> Result<(), ReplyError> {
    while let Some(request) = connection.recv().await {
        let Event::Request(request) = request.into_event() else {
            continue;
        };
        let text = ("Content-Type", "text/plain; charset=utf-8");
        let (body, code, headers) = match request.method() {
            _ if request.path != "/" => ("there is /, /echo and /stream\n", 404, vec![text]),
            Some(b"GET" | b"HEAD") => {
                let html = ("Content-Type", "text/html; charset=utf-8");
                (
                    page.as_str(),
                    200,
                    vec![html, ("Content-Security-Policy", POLICY)],
                )
            }
            _ => (
                "the page can be read, no more\n",
                405,
                vec![text, ("Allow", "GET, HEAD")],
            ),
        };
        connection
            .reply_http(&request, body, code, "", &headers)
            .await?;
    }
    connection.finish().await;
    Ok(())
}

/// The page with a row for each process.
fn page(values: &Values) -> Result<String, String> {
    let own = std::process::id().to_string();
    let rows = values.all("process").map(|process| {
        let mut words = process.splitn(3, ' ').map(escape);
        let (Some(route), Some(pid), Some(command)) = (words.next(), words.next(), words.next())
        else {
            return Err(format!(
                "--process `{process}` is not a route, a process id and a command"
            ));
        };
        let pid = if pid == "self" { &own } else { &pid };
        Ok(format!(
            "<tr><td>{route}<td>{pid}<td><code>{command}</code>\n"
        ))
    });
    let rows = rows.collect::<Result<String, _>>()?;
    Ok(PAGE.replace("<!-- rows -->", &rows))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(process: &str) -> Values {
        [("process", process.to_owned())].into_iter().collect()
    }

    #[test]
    fn a_process_is_a_row_and_no_markup() {
        let page = page(&values("/a 42 run <b> & c")).unwrap();
        assert!(page.contains("<tr><td>/a<td>42<td><code>run &lt;b&gt; &amp; c</code>"));
    }

    #[test]
    fn the_page_knows_its_own_process() {
        let page = page(&values("/ self run")).unwrap();
        assert!(page.contains(&format!("<td>{}<td>", std::process::id())));
    }

    #[test]
    fn half_a_process_is_a_mistake_that_is_told() {
        assert!(page(&values("/ 42")).is_err());
    }
}
