package place

import (
	"strings"
	"testing"

	"ukai"
)

func TestRisksAreThoseThatAReplicaWouldOutlive(t *testing.T) {
	id := func(b byte) ukai.NodeID { return ukai.NodeID{b} }
	var nodes []Node
	for i, dc := range []string{"tokyo", "tokyo", "osaka", "fukuoka"} {
		nodes = append(nodes, Node{ID: id(byte(i)), Name: []string{"t1", "t2", "o1", "w1"}[i], Labels: ukai.Labels{ukai.LabelDC: dc}})
	}
	ids := func(list ...byte) (all []ukai.NodeID) {
		for _, b := range list {
			all = append(all, id(b))
		}
		return all
	}
	for _, test := range []struct {
		name               string
		arbiters, replicas []ukai.NodeID
		want               string
	}{
		{"both copies where most arbiters are", ids(0, 1, 3), ids(0, 1), ""},
		{"a copy elsewhere", ids(0, 1, 2), ids(0, 2), "when tokyo is lost, the copy that is left cannot be attached"},
		{"three datacenters", ids(0, 2, 3), ids(0, 2), ""},
		{"two arbiters", ids(0, 1), ids(0, 1), "only two nodes, t1 and t2, keep its quorum record"},
		{"one arbiter", ids(0), ids(0), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Risks(test.arbiters, test.replicas, nodes)
			switch {
			case test.want == "" && len(got) > 0:
				t.Errorf("warned of %v", got)
			case test.want != "" && (len(got) != 1 || !strings.Contains(got[0].Text, test.want) || got[0].Help == ""):
				t.Errorf("got %v, want %s", got, test.want)
			}
		})
	}
}
