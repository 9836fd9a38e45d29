//go:build linux

package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// Monitor is a connection to QEMU's machine protocol (docs/interop/qmp-spec). It is for one goroutine.
type Monitor struct {
	conn net.Conn
	in   *json.Decoder
}

// answerIn bounds how long QEMU may take for a command; its main loop may be waiting for a disk.
const answerIn = time.Minute

// MonitorArgs makes QEMU listen for a Monitor at a socket.
func MonitorArgs(socket string) []string {
	return []string{"-qmp", "unix:" + socket + ",server=on,wait=off"}
}

// DialMonitor connects to the monitor of a guest started with MonitorArgs.
func DialMonitor(socket string) (*Monitor, error) {
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return nil, err
	}
	m := &Monitor{conn: conn, in: json.NewDecoder(conn)}
	var greeting struct{ QMP json.RawMessage }
	err = errors.Join(conn.SetDeadline(time.Now().Add(answerIn)), m.in.Decode(&greeting))
	if err == nil {
		err = m.Execute("qmp_capabilities", nil, nil)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("monitor %s: %w", socket, err), conn.Close())
	}
	return m, nil
}

// Execute runs a command and decodes what it returns.
func (m *Monitor) Execute(command string, arguments, into any) error {
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := m.conn.SetDeadline(time.Now().Add(answerIn)); err != nil {
		return err
	}
	if err := json.NewEncoder(m.conn).Encode(request); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	for {
		var answer struct {
			Return json.RawMessage
			Event  string
			Error  *struct{ Class, Desc string }
		}
		if err := m.in.Decode(&answer); err != nil {
			return fmt.Errorf("%s: %w", command, err)
		}
		switch {
		case answer.Event != "":
			continue
		case answer.Error != nil:
			return fmt.Errorf("%s: %s", command, answer.Error.Desc)
		case into == nil:
			return nil
		}
		return json.Unmarshal(answer.Return, into)
	}
}
