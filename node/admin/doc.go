// Package admin is how people and programs talk to a node: an HTTP/JSON API over a unix socket, and over the mesh for
// other nodes. It has the API's types, the Backend that a node implements to answer it, the server, and a client.
//
// JSON members are lowerCamel and end in their unit (sizeBytes, rttMicros); moments are RFC 3339; ids are hexadecimal.
// An error crosses as a problem document (RFC 9457) with the member "code", from which the client rebuilds an error for which
// errors.Is holds as it did in the node.
package admin
