// A real cluster for one of the documentation's examples, which include this file.

struct Example {
    dev: std::process::Child,
    data: std::path::PathBuf,
}

impl Example {
    /// One controller and one storage node, as `dmq dev` starts them, and a connection to their NATS.
    async fn start() -> (Self, async_nats::Client) {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
            || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target"),
            std::path::PathBuf::from,
        );
        let name = format!("dmq-example-{}-{number}-{}", std::process::id(), line!());
        let data = std::env::temp_dir().join(name);
        let mut command = std::process::Command::new(target.join("debug/dmq"));
        command.args(["dev", "--controllers", "1", "--storage", "1", "--nats-port", "0", "--data"]).arg(&data);
        if let Some(server) = std::env::var_os("DMQ_TEST_NATS_SERVER") {
            command.arg("--nats-server").arg(server);
        }
        command.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::null());
        let dev = command.spawn().expect("the binary was built with the tests");
        let mut example = Self { dev, data };
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            assert!(std::time::Instant::now() < deadline, "no cluster, in {}", example.data.display());
            assert!(example.dev.try_wait().unwrap().is_none(), "`dmq dev` ended, in {}", example.data.display());
            if let Some(client) = example.connect().await
                && let admin = dmq::client::Admin::new(client.clone(), "dmq.admin")
                && admin.cluster_status().await.is_ok_and(|status| status.healthy && status.storage_nodes.len() == 1)
            {
                return (example, client);
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    async fn connect(&self) -> Option<async_nats::Client> {
        let text = std::fs::read(self.data.join("dev.json")).ok()?;
        let json: serde_json::Value = serde_json::from_slice(&text).ok()?;
        async_nats::connect(json["natsUrl"].as_str()?).await.ok()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let dev = rustix::process::Pid::from_child(&self.dev);
        let _ = rustix::process::kill_process(dev, rustix::process::Signal::INT);
        let _ = self.dev.wait();
        let _ = std::fs::remove_dir_all(&self.data);
    }
}
