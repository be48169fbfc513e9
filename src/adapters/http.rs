use crate::worker::Worker;
use std::net::SocketAddr;
use std::rc::Rc;
use tokio::net::TcpStream;
pub(crate) async fn serve(_s: TcpStream, _p: SocketAddr, _w: Rc<Worker>) {}
