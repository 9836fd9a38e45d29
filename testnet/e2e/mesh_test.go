//go:build linux

package e2e

import (
	"fmt"
	"strings"
	"testing"

	"ukai/testnet/proc"
)

func TestAChangeReachesTwentyProcesses(t *testing.T) {
	var specs []string
	for i := range 20 {
		specs = append(specs, fmt.Sprintf("n%d:dc%d", i, i%4))
	}
	m := proc.Start(t, strings.Join(specs, " "))
	m.Nodes["n7"].Must("place", "node", "n3", "rack=r9")
	for name, n := range m.Nodes {
		m.Await("the label of n3 as "+name+" sees it", func() error {
			var status struct {
				Nodes []struct {
					Name   string
					Labels map[string]string
				}
			}
			if err := n.JSON(&status, "status"); err != nil {
				return err
			}
			for _, other := range status.Nodes {
				if other.Name == "n3" && other.Labels["rack"] == "r9" {
					return nil
				}
			}
			return fmt.Errorf("not there yet")
		})
	}
}
