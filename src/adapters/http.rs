use std::net::SocketAddr; use std::rc::Rc; use tokio::net::TcpStream; use crate::worker::Worker;
pub(crate) async fn serve(_s: TcpStream, _p: SocketAddr, _w: Rc<Worker>) {}
