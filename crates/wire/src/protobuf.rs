//! The protobuf wire format: just enough to walk and write messages. (Reader, Writer, envelope.)
