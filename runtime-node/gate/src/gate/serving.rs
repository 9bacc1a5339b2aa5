//! Weights on their way to and from other nodes.

use genie_channel::message;
use genie_wire::ErrorCode;
use genie_wire::control::{Refusal, WeightServe, WeightServing};
use genie_wire::frame::FrameKind;
use genie_wire::limits::STRING_BYTES_MAX;
use prost::Message as _;
use rustix::event::epoll::{self, EventFlags};

use super::{Gate, MESSAGES_AT_ONCE, SERVING, watch};
use crate::moves::Said;
use crate::newcomers::Who;

/// Connections of hosts that have weights served.
const SERVING_MAX: usize = 64;

impl Gate {
    pub(super) fn admit_serving(
        &mut self,
        id: u64,
        serve: WeightServe,
    ) -> Result<(), (ErrorCode, String)> {
        if self.serving.len() >= SERVING_MAX {
            let message = format!("{SERVING_MAX} connections have weights served already");
            return Err((ErrorCode::Unavailable, message));
        }
        let newcomer = self.take_newcomer(id).expect("it was just there");
        let here = matches!(newcomer.who, Who::Here(_));
        let link = newcomer.into_link();
        let Ok(mut link) = link else { return Ok(()) };
        if here {
            // It was only looked at.
            let _ = link.poll();
        }
        if let Err(error) = watch(&self.epoll, link.event_fd(), SERVING | id, EventFlags::IN) {
            let words = Refusal { code: ErrorCode::Unavailable as u32, message: error.to_string() };
            self.leave(link, &words);
            return Ok(());
        }
        self.serving.insert(id, link);
        self.serve(id, &serve);
        // More may have come with it.
        self.serve_host(id);
        Ok(())
    }

    /// A host that has weights served says something.
    pub(super) fn serve_host(&mut self, id: u64) {
        for _ in 0..MESSAGES_AT_ONCE {
            let Some(link) = self.serving.get_mut(&id) else { return };
            let polled = link.flush().and_then(|()| link.poll());
            let refused = match polled {
                Ok(None) => return,
                Ok(Some(frame)) if frame.kind == FrameKind::WeightServe => {
                    match WeightServe::decode(&frame.body[..]) {
                        Ok(serve) => {
                            self.serve(id, &serve);
                            continue;
                        }
                        Err(error) => Some(error.to_string()),
                    }
                }
                Ok(Some(frame)) => Some(format!("{:?} came where weights are served", frame.kind)),
                Err(error) => error.is_refusable().then(|| error.to_string()),
            };
            let link = self.serving.remove(&id).expect("it just spoke");
            let _ = epoll::delete(&self.epoll, link.event_fd());
            if let Some(message) = refused {
                self.leave(link, &Refusal { code: ErrorCode::Protocol as u32, message });
            }
            return;
        }
    }

    /// Gives a weight of a client of this host to another node.
    fn serve(&mut self, id: u64, serve: &WeightServe) {
        let Some(link) = self.serving.get(&id) else { return };
        let peer = link.peer_identity();
        let worker = self.worker_of(&(peer.clone(), serve.device));
        let count = self.facts.devices.len();
        let asked = match worker {
            _ if serve.device as usize >= count => {
                Err(format!("device {} does not exist, the node has {count}", serve.device))
            }
            None => Err("the weight is not, or no longer, in the node's store".to_owned()),
            Some(_) if serve.identity.len() > STRING_BYTES_MAX => {
                Err("the client's identity is too long".to_owned())
            }
            Some(worker) => {
                self.moves.serve(serve, message::identity(&peer, &serve.identity), id, worker)
            }
        };
        if let Err(refused) = asked {
            self.answer_serve(id, WeightServing { refused, ..WeightServing::default() });
        }
    }

    fn answer_serve(&mut self, id: u64, answer: WeightServing) {
        if let Some(link) = self.serving.get_mut(&id)
            && let Err(error) =
                link.post_send(FrameKind::WeightServing, &[&answer.encode_to_vec()], None)
        {
            tracing::debug!(%error, "a host is not told of a weight");
        }
    }

    pub(super) fn move_weights(&mut self) {
        self.moves.turns(&self.epoll);
        for said in self.moves.said() {
            match said {
                Said::ToWorker(worker, message) => {
                    self.post(worker, message, vec![]);
                }
                Said::ToHost(host, answer) => self.answer_serve(host, answer),
            }
        }
    }
}
