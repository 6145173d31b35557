//! What most begin with: a web server, and everybody takes the file from it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::{Done, Fetch, Place};
use crate::command::finish;
use crate::network::{STORE, address};
use crate::process::Process;

const PORT: u16 = 8080;

pub(super) async fn serve(place: &Place<'_>) -> Result<Vec<Process>> {
    let (folder, root) = (place.folder.display(), place.payload.path.parent().context("the payload lies in a folder")?);
    let configuration = place.folder.join("nginx.conf");
    let text = format!(
        "daemon off; master_process off; user root; pid {folder}/nginx.pid; error_log stderr;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n\
           access_log off; sendfile on; tcp_nopush on;\n\
           client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;\n\
           uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;\n\
           server {{ listen {}:{PORT}; root {}; }}\n\
         }}\n",
        address(STORE),
        root.display()
    );
    fs::write(&configuration, text)?;
    let mut command = place.network.command(STORE, Path::new("nginx"));
    command.arg("-p").arg(place.folder).arg("-c").arg(&configuration);
    let mut processes = vec![Process::spawn(&mut command, place.folder, "nginx")?];
    let head = || {
        let mut ask = place.network.command(STORE, Path::new("curl"));
        finish(ask.args(["-fsSI", "-m", "2", &url()]), Duration::from_secs(5))
    };
    place.until("the web server", &mut processes, || head().is_ok()).await?;
    Ok(processes)
}

pub(super) fn fetch(place: &Place<'_>, host: u16, folder: &Path) -> Fetch {
    let out = folder.join("payload");
    let mut command = place.network.command(host, Path::new("curl"));
    command.args(["-fsS", &url(), "--output"]).arg(&out);
    Fetch { command, out, done: Done::Exits }
}

fn url() -> String {
    format!("http://{}:{PORT}/payload", address(STORE))
}
