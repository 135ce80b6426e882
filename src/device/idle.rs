//! Leaving tokens to other programs that nobody has used for a while (`idle-release-seconds`).

use tokio::sync::oneshot;

use super::catalogue::TokenState;
use super::link::Link;
use super::supervisor::Supervisor;

impl Supervisor {
    /// Marks the tokens that were idle for as long as the configuration says as released. `Some` if
    /// there are any: the worker is to end.
    pub(super) fn release_idle(&mut self, link: &Link) -> Option<oneshot::Sender<()>> {
        let view = self.view.borrow().clone();
        let mut is_any = false;
        for (token, config) in view.tokens.iter().zip(&self.config.token) {
            let (Some(info), Some(limit)) = (&token.found, config.idle_release) else {
                continue;
            };
            if token.state == TokenState::Ready && link.idle_for(info.number) >= limit {
                tracing::info!(module = self.config.name, token = %token.id, "idle");
                self.released.insert(token.id.clone());
                is_any = true;
            }
        }
        // Nobody waits for it.
        is_any.then(|| oneshot::channel().0)
    }
}
