use std::rc::Rc; use crate::worker::Worker;
pub(crate) async fn serve(_s: tokio::net::UdpSocket, _w: Rc<Worker>) {}
