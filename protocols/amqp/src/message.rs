//! Messages (AMQP 1.0 3.2): finding and reading their sections, and writing them.
//!
//! For links that end here. A routed message is never looked into.

mod properties;
mod readdress;
mod sections;
#[cfg(test)]
mod tests;
mod write;

pub use properties::{Properties, PropertiesOut};
pub use readdress::put_readdressed;
pub use sections::{Body, Header, Sections};
pub use write::{
    put_amqp_value, put_application_properties, put_data, put_delivery_annotations, put_header,
    put_message_annotations, put_properties,
};
